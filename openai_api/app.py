"""Application: the gateway as an ASGI application."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from openai_api.errors import ApiError, from_exception, from_validation, invalid, unknown_route, wrong_method
from openai_api.http.auth import VISIT, AuthMiddleware
from openai_api.http.body_limit import LIMIT, BodyLimitMiddleware
from openai_api.http.disconnects import ClientGone
from openai_api.http.request_log import GONE, RequestLog
from openai_api.http.scopes import ANY, OPEN, ScopedEndpoint, open_paths
from openai_api.http.static_site import StaticSite, simple
from openai_api.protocol.messages import body_of
from openai_api.protocol.openapi import KEYED
from openai_api.protocol.schemas import names
from openai_api.routes import accounts, console, inference, monitoring
from openai_api.routes.state import GatewayState
from swarm.errors import SwarmError
from swarm.version import __version__

log = logging.getLogger(__name__)

ALLOWED_HEADERS = ("authorization", "content-type", "x-api-key", "anthropic-version", "anthropic-beta")


@dataclass(frozen=True)
class AppSettings:
    """Settings of the application.

    Attributes:
        api_key: what callers must show; None: only requests addressed to this machine are answered.
        body_limit: bytes.
        site: the page; None: the simple one.
        invites: whether the holder of `api_key` may make join tokens.
        origins: web pages of others that may use the gateway, with a key of their own.
    """

    api_key: str | None = None
    body_limit: int = LIMIT
    site: StaticSite | None = None
    invites: bool = True
    origins: Sequence[str] = ()


def create_app(state: GatewayState, settings: AppSettings | None = None) -> ASGIApp:
    """The gateway's application: its routes behind authentication, limits and the log of requests."""
    settings = settings or AppSettings()
    # No documentation pages: FastAPI's fetch their scripts from elsewhere.
    app = FastAPI(title="layerswarm gateway", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gateway = state
    site = settings.site or simple()
    routes = add_routes(app, state, settings, site)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ClientGone, _on_gone)
    for kind in (ApiError, SwarmError, Exception):
        app.add_exception_handler(kind, _on_error)
    guarded: ASGIApp = AuthMiddleware(
        BodyLimitMiddleware(app, settings.body_limit),
        settings.api_key,
        open_paths(routes) | site.paths,
        state.accounts,
        settings.invites,
        state.sign_in.cookie if state.sign_in else VISIT,
    )
    if settings.origins:
        # Credentials of the browser's own (cookies) are of no use to other origins.
        guarded = CORSMiddleware(
            guarded,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=ALLOWED_HEADERS,
            expose_headers=["x-request-id", "retry-after"],
        )
    return RequestLog(guarded, state.metrics)


def add_routes(app: FastAPI, state: GatewayState, settings: AppSettings, site: StaticSite) -> list[BaseRoute]:
    """Add every route that the gateway has; gives them back."""
    keyed = KEYED if settings.api_key or state.accounts else ()
    app.include_router(inference.router, dependencies=keyed)
    app.include_router(monitoring.router, dependencies=keyed)
    others = [monitoring.open_router, accounts.open_router, accounts.router, accounts.admin_router]
    if state.console is not None:
        others += [console.router, console.admin_router]
    for router in others:
        app.include_router(router)
    if state.sign_in is not None:
        app.router.routes.extend(accounts.sign_in_routes(state.sign_in))
    _add_document(app)
    _add_site(app, site)
    own = [route for route in app.routes if isinstance(route, Route)]  # and not a router
    return [*own, *(route for router in (inference.router, monitoring.router, *others) for route in router.routes)]


def _add_document(app: FastAPI) -> None:
    """The description of the API, at FastAPI's usual place."""

    async def document(request: Request) -> Response:
        return JSONResponse(app.openapi())

    app.router.routes.append(ScopedEndpoint("/openapi.json", document, scope=ANY, methods=["GET"]))


def _add_site(app: FastAPI, site: StaticSite) -> None:
    async def page(request: Request) -> Response:
        return site.answer(request)

    files = [path for path in site.paths if path.count("/") == 1]
    for path in [*sorted(files), *(f"/{folder}/{{path:path}}" for folder in sorted(site.folders))]:
        app.router.routes.append(ScopedEndpoint(path, page, scope=OPEN, methods=["GET", "HEAD"]))


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
