"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from openai_api.accounts import routes as account_routes
from openai_api.accounts.access import Accounts
from openai_api.accounts.sign_in import SignIn
from openai_api.console import routes
from openai_api.console.console import Console
from openai_api.errors import ApiError, from_exception, from_validation, invalid, unknown_route, wrong_method
from openai_api.gateway import Gateway
from openai_api.generation.metrics import Metrics
from openai_api.http.auth import VISIT, AuthMiddleware
from openai_api.http.body_limit import LIMIT, BodyLimitMiddleware
from openai_api.http.concurrency import RequestQueue
from openai_api.http.disconnects import ClientGone
from openai_api.http.request_log import GONE, RequestLog
from openai_api.http.static_site import StaticSite, simple
from openai_api.protocol.messages import body_of
from openai_api.protocol.openapi import KEYED
from openai_api.protocol.schemas import names
from openai_api.routes import open_router, router
from swarm import SwarmError, __version__

log = logging.getLogger(__name__)

ALLOWED_HEADERS = ("authorization", "content-type", "x-api-key", "anthropic-version", "anthropic-beta")


def create_app(
    gateway: Gateway,
    *,
    api_key: str | None = None,
    closing: asyncio.Event | None = None,
    body_limit: int = LIMIT,
    room: RequestQueue | None = None,
    site: StaticSite | None = None,
    console: Console | None = None,
    accounts: Accounts | None = None,
    sign_in: SignIn | None = None,
    invites: bool = True,
    origins: Sequence[str] = (),
) -> ASGIApp:
    """
    Args:
        api_key: what callers must show; None: only requests addressed to this machine are answered.
        closing: set when the gateway shuts down; answers that are being made end with an error then.
        body_limit: bytes.
        room: for how many requests there is.
        site: the page; by default the simple one.
        console: what the page's console shows; None: there is none.
        accounts: who may use it besides the holder of `api_key`; None: nobody.
        sign_in: lets members in by an OpenID provider.
        invites: whether the holder of `api_key` may make join tokens.
        origins: web pages of others that may use the gateway, with a key of their own.
    """
    # No documentation pages: FastAPI's fetch their scripts from elsewhere.
    app = FastAPI(title="layerswarm gateway", version=__version__, docs_url=None, redoc_url=None)
    app.state.gateway = gateway
    app.state.metrics = metrics = Metrics(gateway.engine)
    app.state.room = room or RequestQueue()
    app.state.closing = closing or asyncio.Event()
    app.state.console = console
    app.state.accounts = accounts
    app.state.sign_in = sign_in
    app.include_router(router, dependencies=KEYED if api_key or accounts else ())
    app.include_router(open_router)
    app.include_router(account_routes.router)
    if sign_in is not None:
        app.router.routes.extend(sign_in.routes)
    if console is not None:
        app.include_router(routes.router)
    site = site or simple()
    _add(site, app)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientGone, _on_gone)
    for kind in (ApiError, SwarmError, Exception):
        app.add_exception_handler(kind, _on_error)
    guarded: ASGIApp = AuthMiddleware(
        BodyLimitMiddleware(app, body_limit),
        api_key,
        site.paths,
        accounts,
        invites,
        sign_in.cookie if sign_in else VISIT,
    )
    if origins:
        # Credentials of the browser's own (cookies) are of no use to other origins.
        guarded = CORSMiddleware(
            guarded,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=ALLOWED_HEADERS,
            expose_headers=["x-request-id", "retry-after"],
        )
    return RequestLog(guarded, metrics)


def _add(site: StaticSite, app: FastAPI) -> None:
    async def page(request: Request) -> Response:
        return site.answer(request)

    files = [path for path in site.paths if path.count("/") == 1]
    for path in [*sorted(files), *(f"/{folder}/{{path:path}}" for folder in sorted(site.folders))]:
        app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)


async def _on_error(request: Request, error: Exception) -> Response:
    problem = from_exception(error, request.state.request_id)
    if problem.status == 500 and isinstance(error, SwarmError):
        log.error("%s failed: %s", request.state.request_id, error)
    return _response(request, problem)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _response(request, from_validation(error.errors(), names()))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            return _response(request, unknown_route(request.method, request.url.path))
        case 405:
            return _response(request, wrong_method(request.method, request.url.path, error.headers))
        case 413:
            return _response(request, ApiError(413, error.detail, code="body_too_large"))
        case _:
            problem = invalid("The body could not be read: it must be JSON in UTF-8.", code="invalid_json")
            return _response(request, problem)


async def _on_gone(request: Request, error: Exception) -> Response:
    log.info("%s: the client is gone", request.state.request_id)
    return Response(status_code=GONE)


def _response(request: Request, problem: ApiError) -> Response:
    # ASCII, because a message may quote what the caller sent, and that need not be text (halves of surrogate pairs).
    body = body_of(problem, request.scope["path"], request.state.request_id)
    content = json.dumps(body, ensure_ascii=True)
    return Response(content, problem.status, problem.headers, media_type="application/json")
