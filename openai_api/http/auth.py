"""Authentication: callers are holders of the gateway's API key or of an account; without either, only this machine."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from openai_api.accounts import key_format
from openai_api.accounts.access import Accounts, unauthorised
from openai_api.accounts.principals import USING, Principal
from openai_api.errors import ApiError
from openai_api.protocol.messages import body_of

VISIT = "swarm-visit"  # the cookie of a browser that has signed in


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The host of a `Host` header, without its port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]


class AuthMiddleware:
    """Authentication: lets requests through to `app`, or answers them with an error, before a body is read.

    With a key or with accounts: requests that carry a key as `Authorization: Bearer KEY`, or as `X-Api-Key: KEY`
    (Anthropic's way), and those of a browser that has signed in. Without: requests that are addressed to this machine,
    so that no web page can reach the gateway by giving its own name this machine's address (DNS rebinding).

    Args:
        key: the gateway's own.
        open_paths: paths that need no key (see `openai_api.http.scopes`).
        invites: whether the holder of the gateway's own key may make join tokens.
        cookie: name of the one that a browser has after signing in.

    `principal_of` gives the caller to those who answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None,
        open_paths: frozenset[str] = frozenset(),
        accounts: Accounts | None = None,
        invites: bool = True,
        cookie: str = VISIT,
    ) -> None:
        self._app = app
        self._open = open_paths
        self._key = key.encode() if key else None
        self._accounts = accounts
        self._holder = Principal(scopes=USING | {"admin"} if invites else USING, invites=invites)
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem: ApiError | None = None
        scope["state"]["principal"] = None
        try:
            scope["state"]["principal"] = await self._authenticated(HTTPConnection(scope))
        except ApiError as error:
            problem = error
        if problem is None or (scope["path"] in self._open and problem.code != "wrong_host"):
            await self._app(scope, receive, send)
            return
        body = body_of(problem, scope["path"], scope["state"].get("request_id", ""))
        await JSONResponse(body, problem.status, problem.headers)(scope, receive, send)

    async def _authenticated(self, request: HTTPConnection) -> Principal:
        """The caller. Raises: ApiError: it may not come in."""
        if self._key is None and self._accounts is None:
            if is_loopback(host_of(request.headers.get("host", ""))):
                return Principal()
            message = "Without an API key this gateway answers only requests addressed to this machine (127.0.0.1)."
            raise ApiError(403, message, code="wrong_host")
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        given = [request.headers.get("x-api-key", ""), bearer if scheme.lower() == "bearer" else ""]
        texts = [text.strip() for text in given if text.strip()]
        if self._key is not None and any(hmac.compare_digest(text.encode("latin-1"), self._key) for text in texts):
            return self._holder
        if self._accounts is not None:
            if texts:
                return await self._accounts.by_key(next(filter(key_format.parse, texts), ""))
            visit = request.cookies.get(self._cookie)
            if visit and same_origin(request) and (caller := await self._accounts.by_visit(visit)):
                return caller
        message = "You did not provide an API key, or not the right one. Send it as 'Authorization: Bearer KEY'."
        raise unauthorised(message)


def same_origin(request: HTTPConnection) -> bool:
    """Whether a request that a browser sent of its own accord (with a cookie) comes from this gateway's own page.

    Where nothing says so, the request must change nothing.
    """
    said = own_page(request)
    return request.scope["method"] in ("GET", "HEAD") if said is None else said


def own_page(request: HTTPConnection) -> bool | None:
    """Whether a browser says that its request comes from this gateway's own page: in `Sec-Fetch-Site`, or else by this
    gateway's name in `Origin` or `Referer`. None: nothing says where it comes from, as with scripts.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    named = request.headers.get("origin") or request.headers.get("referer")
    return None if named is None else urlsplit(named).netloc.lower() == request.headers.get("host", "").lower()


def maybe_principal_of(request: HTTPConnection) -> Principal | None:
    """The caller of a request; None: it is not known, and the path is open."""
    principal: Principal | None = request.state.principal
    return principal


def principal_of(request: HTTPConnection) -> Principal:
    """The caller of a request. Raises: ApiError: it is not known."""
    if (principal := maybe_principal_of(request)) is None:
        raise unauthorised("You did not provide an API key. Send it as 'Authorization: Bearer KEY'.")
    return principal
