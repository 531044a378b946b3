"""Signing in with an OpenID provider: the authorization code flow with PKCE, by Authlib.

The provider says who a person is; who may come in is decided here. What a sign-in needs while it is under way is in a
signed cookie for ten minutes, and lost when the gateway ends. Afterwards the browser has another cookie, whose random
content leads to a row in the database: taking the row away ends the visit. Neither can be read by scripts.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from openai_api.accounts.access import Accounts
from openai_api.accounts.database import AccountsError
from openai_api.accounts.principals import Person
from openai_api.accounts.usage import plain
from swarm.errors import SwarmError

log = logging.getLogger(__name__)

BEGIN, CALLBACK, END = "/api/sign-in", "/api/sign-in/callback", "/api/sign-out"
WELL_KNOWN = "/.well-known/openid-configuration"
UNDER_WAY = 600  # s for a sign-in
VISIT_LASTS = 12 * 3600  # s
TIMEOUT = 10.0  # s for an answer of the provider
# Not those with a shared secret, and never "none".
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")


class SignInRefused(Exception):
    """Sign-in that is refused; the text is for the person."""


@dataclass(frozen=True)
class Provider:
    """OpenID provider by which members sign in.

    Attributes:
        issuer: the URL by which the provider calls itself.
        owners: e-mail addresses of people who become owners when they sign in.
        admitted: e-mail addresses, or whole domains as `@example.org`, whose people become members when they sign in.
            Others come in only if an owner has added them.
    """

    issuer: str
    client_id: str
    client_secret: str | None = field(default=None, repr=False)
    owners: frozenset[str] = frozenset()
    admitted: frozenset[str] = frozenset()

    def admits(self, email: str) -> bool:
        return email in self.admitted or email[email.rindex("@") :] in self.admitted


class SignIn:
    """Sign-in of members by an OpenID provider.

    Args:
        url: where browsers find the gateway. Not taken from requests, because a caller can write anything there.

    Raises:
        SwarmError: Authlib is not installed, or `url` is none.
    """

    def __init__(self, provider: Provider, accounts: Accounts, url: str) -> None:
        try:
            from authlib.integrations.starlette_client import OAuth
            from starlette.middleware.sessions import SessionMiddleware  # needs itsdangerous
        except ImportError as error:
            raise SwarmError("signing in needs Authlib: python -m pip install 'layerswarm[openid]'") from error
        self._provider = provider
        self._accounts = accounts
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise SwarmError(f"--url {url}: write where browsers find the gateway, such as https://chat.example.org", 2)
        self._url = url.rstrip("/")
        self._secure = self._url.startswith("https://")
        # Browsers keep the prefix for cookies that come over HTTPS from this very host.
        self.cookie = "__Host-swarm-visit" if self._secure else "swarm-visit"
        self._client: Any = OAuth().register(
            "provider",
            server_metadata_url=provider.issuer.rstrip("/") + WELL_KNOWN,
            client_id=provider.client_id,
            client_secret=provider.client_secret,
            client_kwargs={"scope": "openid email profile", "code_challenge_method": "S256", "timeout": TIMEOUT},
        )
        self.session = Middleware(
            SessionMiddleware,
            secret_key=secrets.token_urlsafe(32),
            session_cookie="swarm-sign-in",
            max_age=UNDER_WAY,
            path=BEGIN,
            same_site="lax",  # the provider leads the browser back here
            https_only=self._secure,
        )

    async def begin(self, request: Request) -> Response:
        try:
            await self._metadata()
            response: Response = await self._client.authorize_redirect(request, self._url + CALLBACK)
        except _troubles() as error:
            return self._failed(502, f"The provider {self._provider.issuer} cannot be asked.", error)
        response.headers["Cache-Control"] = "no-store"
        return response

    async def finish(self, request: Request) -> Response:
        try:
            person = await self._person(request)
            now = self._accounts.clock()
            if old := request.cookies.get(self.cookie):
                await self._accounts.do(self._accounts.store.end_visit, old)
            token = await self._accounts.do(self._accounts.store.begin_visit, person.id, now, now + VISIT_LASTS)
        except SignInRefused as refused:
            return self._failed(403, str(refused), refused)
        except AccountsError as error:
            return self._failed(503, "The accounts cannot be read now.", error)
        except _troubles() as error:
            return self._failed(400, "The sign-in could not be finished. Begin it again.", error)
        response = RedirectResponse("/", 303, {"Cache-Control": "no-store"})
        response.set_cookie(
            self.cookie, token, VISIT_LASTS, path="/", secure=self._secure, httponly=True, samesite="strict"
        )
        return response

    async def end(self, request: Request) -> Response:
        if visit := request.cookies.get(self.cookie):
            await self._accounts.do(self._accounts.store.end_visit, visit)
        response = Response(status_code=204, headers={"Cache-Control": "no-store"})
        response.delete_cookie(self.cookie, path="/", secure=self._secure, httponly=True, samesite="strict")
        return response

    async def _metadata(self) -> dict[str, Any]:
        """What the provider says of itself. Raises: ValueError: it is another provider than the one that is meant."""
        found: dict[str, Any] = await self._client.load_server_metadata()
        if str(found.get("issuer", "")).rstrip("/") != self._provider.issuer.rstrip("/"):
            raise ValueError(f"it calls itself {found.get('issuer')!r}")
        offered = found.get("id_token_signing_alg_values_supported") or ["RS256"]
        found["id_token_signing_alg_values_supported"] = [name for name in offered if name in ALGORITHMS]
        return found

    async def _person(self, request: Request) -> Person:
        """Raises: Refused; what `_troubles` names: the provider's answer is not what it should be."""
        metadata = await self._metadata()
        wanted = {
            "iss": {"essential": True, "value": metadata["issuer"]},
            "aud": {"essential": True, "value": self._provider.client_id},
        }
        token = await self._client.authorize_access_token(request, claims_options=wanted)
        claims: dict[str, Any] = dict(token.get("userinfo") or {})
        if not claims.get("sub"):
            raise ValueError("there is no ID token")
        if "email" not in claims and metadata.get("userinfo_endpoint"):
            more = dict(await self._client.userinfo(token=token))
            claims = {**more, **claims} if more.get("sub") == claims["sub"] else claims
        email = plain(str(claims.get("email") or "")).strip().lower()
        if "@" not in email or claims.get("email_verified") is not True:
            raise SignInRefused("The provider names no e-mail address of yours that it has verified.")
        store, provider = self._accounts.store, self._provider
        person = await self._accounts.do(
            store.sign_in,
            f"{metadata['issuer']} {claims['sub']}",
            email,
            plain(str(claims.get("name") or ""))[:200].strip(),
            self._accounts.clock(),
            email in provider.owners,
            provider.admits(email),
        )
        if person is None:
            raise SignInRefused(f"{email} has no account here. Ask an owner of this gateway to add it.")
        return person

    def _failed(self, status: int, message: str, error: Exception) -> Response:
        log.warning("a sign-in failed: %s", error or type(error).__name__)
        text = f"{message}\n\nBack to the page: {self._url}/\n"
        return PlainTextResponse(text, status, {"Cache-Control": "no-store"})


def provider_of(
    issuer: str, client_id: str | None, client_secret: str | None, owners: Sequence[str], admitted: Sequence[str]
) -> Provider:
    """Raises: SwarmError: something is missing, or the provider would be asked without encryption."""
    if not client_id:
        raise SwarmError("--openid also needs --openid-client-id, as the provider has given it", 2)
    issuer = issuer.removesuffix(WELL_KNOWN)
    parts = urlsplit(issuer)
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise SwarmError("--openid takes the provider's URL, such as https://accounts.example.org", 2)
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise SwarmError("--openid: a provider on another machine must have an https URL", 2)
    lower = [{each.strip().lower() for each in group} for group in (owners, admitted)]
    for each in (*lower[0], *lower[1]):
        if "@" not in each:
            raise SwarmError(f"{each!r} is no e-mail address, and no domain such as @example.org", 2)
    return Provider(issuer, client_id, client_secret, frozenset(lower[0]), frozenset(lower[1]))


def _troubles() -> tuple[type[Exception], ...]:
    """What Authlib raises where the provider, or what a browser brings from it, is not as it should be."""
    import httpx2
    from authlib.common.errors import AuthlibBaseError
    from joserfc.errors import JoseError

    return AuthlibBaseError, JoseError, httpx2.HTTPError, ValueError, KeyError, RuntimeError
