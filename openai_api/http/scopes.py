"""Scopes of routes: what a caller's key must allow, declared where the route is, and checked before a body is read.

A route without a declaration is refused when the app is made, so nothing is open by oversight.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from openai_api.accounts.principals import SCOPES
from openai_api.errors import ApiError
from openai_api.http.auth import principal_of

OPEN = ""  # in place of a scope: no key is asked for
ANY = "any"  # the same: any key will do

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ScopedRoute(APIRoute):
    """Route that needs `scope`, or none where that is `OPEN`."""

    scope = OPEN

    def get_route_handler(self) -> Handler:
        handler = super().get_route_handler()
        return checked(handler, self.scope) if self.scope else handler


def scoped(scope: str) -> type[ScopedRoute]:
    """The `route_class` of a router whose routes need a scope."""
    assert scope in (*SCOPES, OPEN, ANY)
    return type("ScopedRoute", (ScopedRoute,), {"scope": scope})


def checked(handler: Handler, scope: str) -> Handler:
    """The handler, for callers with the scope only."""

    async def check(request: Request) -> Response:
        require_scope(request, scope)
        return await handler(request)

    return check


def require_scope(request: Request, scope: str) -> None:
    """Raises: ApiError: the caller is not known, or its key lacks the scope."""
    principal = principal_of(request)
    if scope != ANY and scope not in principal.scopes:
        message = f"This API key lacks the scope '{scope}', which this request needs."
        raise ApiError(403, message, code="insufficient_scope")


class ScopedEndpoint(Route):
    """Route of plain Starlette that needs `scope`, or none where that is `OPEN`."""

    def __init__(self, path: str, endpoint: Handler, *, scope: str, **options: Any) -> None:
        super().__init__(path, checked(endpoint, scope) if scope else endpoint, **options)
        self.scope = scope


def scope_of(route: BaseRoute) -> str | None:
    """The scope that a route has declared; None: it has declared nothing."""
    return route.scope if isinstance(route, ScopedRoute | ScopedEndpoint) else None


def open_paths(routes: Iterable[BaseRoute]) -> frozenset[str]:
    """The paths that need no key.

    Raises:
        ValueError: a route has declared neither a scope nor that it is open.
    """
    found = list(routes)
    undeclared = [getattr(route, "path", repr(route)) for route in found if scope_of(route) is None]
    if undeclared:
        raise ValueError(f"no scope is declared for {', '.join(undeclared)}: see openai_api/http/scopes.py")
    return frozenset(route.path for route in found if isinstance(route, Route) and scope_of(route) == OPEN)
