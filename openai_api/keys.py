"""Who may use the gateway: holders of its API key, or, without one, only this machine."""

from __future__ import annotations

import hmac
import ipaddress

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from openai_api.errors import ApiError
from openai_api.messages import body_of

OPEN = frozenset({"/health"})  # a monitor must know whether the gateway lives


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


class Guard:
    """Lets requests through to `app`, or answers them with an error.

    With a key: requests that carry it as `Authorization: Bearer KEY`, or as `X-Api-Key: KEY` (Anthropic's way).
    Without one: requests that are addressed to this machine, so that no web page can reach the gateway by giving its
    own name this machine's address (DNS rebinding).

    Args:
        open_paths: of the page, which asks for the key itself.

    `scope["state"]["trusted"]` says whether the caller has shown the right to everything.
    """

    def __init__(self, app: ASGIApp, key: str | None, open_paths: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._open = OPEN | open_paths
        self._key = key.encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        problem = self._problem(headers)
        scope["state"]["trusted"] = problem is None
        if problem is None or (self._key is not None and scope["path"] in self._open):
            await self._app(scope, receive, send)
            return
        body = body_of(problem, scope["path"], scope["state"].get("request_id", ""))
        await JSONResponse(body, problem.status, problem.headers)(scope, receive, send)

    def _problem(self, headers: dict[bytes, bytes]) -> ApiError | None:
        if self._key is None:
            host = host_of(headers.get(b"host", b"").decode("latin-1"))
            if is_loopback(host):
                return None
            message = "Without an API key this gateway answers only requests addressed to this machine (127.0.0.1)."
            return ApiError(403, message, code="wrong_host")
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = [headers.get(b"x-api-key", b""), bearer if scheme.lower() == b"bearer" else b""]
        if any(hmac.compare_digest(each.strip(), self._key) for each in given):
            return None
        message = "You did not provide an API key, or not the right one. Send it as 'Authorization: Bearer KEY'."
        return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
