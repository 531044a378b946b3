"""Scopes: every route says what it needs, and what says nothing is not served."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Route

from openai_api.accounts.access import Accounts
from openai_api.accounts.database import connect
from openai_api.accounts.sign_in import Provider, SignIn
from openai_api.accounts.store import Store
from openai_api.app import AppSettings, add_routes
from openai_api.console.console import Console
from openai_api.gateway import Gateway
from openai_api.http.scopes import ANY, OPEN, open_paths, scope_of, scoped
from openai_api.http.static_site import simple
from openai_api.routes.state import GatewayState
from tests.openai_api.accounts.toy import Toy

SCOPES = {
    "inference": {
        "/v1/models", "/v1/models/{model:path}", "/v1/completions", "/v1/chat/completions", "/v1/responses",
        "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/tokenizer_info",
    },
    "console": {"/metrics", "/api/swarm", "/api/events", "/api/answers/{answer}", "/api/usage", "/api/sign-out"},
    "admin": {"/api/keys", "/api/keys/{id}", "/api/members", "/api/members/{id}", "/api/tokens"},
    ANY: {"/openapi.json"},
    OPEN: {"/health", "/api/account", "/api/sign-in", "/api/sign-in/callback", "/", "/index.html"},
}  # fmt: skip


@pytest.fixture
def routes(tmp_path: Path) -> list[BaseRoute]:
    """The routes of an app with everything that a gateway can have."""
    accounts = Accounts(Store(connect(f"sqlite:///{tmp_path / 'accounts.db'}")), lambda: 0.0)
    sign_in = SignIn(Provider("https://id.example.org", "id", "secret"), accounts, "https://swarm.example.org")
    engine = Toy()
    state = GatewayState.make(Gateway(engine), console=Console(engine), accounts=accounts, sign_in=sign_in)  # type: ignore[arg-type]
    made = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    return add_routes(made, state, AppSettings(), simple())


def test_every_route_needs_the_scope_that_it_is_listed_with(routes: list[BaseRoute]) -> None:
    found: dict[str, set[str]] = {}
    for route in routes:
        assert isinstance(route, Route)
        scope = scope_of(route)
        assert scope is not None, f"{route.path} declares no scope"
        found.setdefault(scope, set()).add(route.path)
    assert found == SCOPES
    assert open_paths(routes) == SCOPES[OPEN]


def test_a_route_that_declares_nothing_is_refused_when_the_app_is_made(routes: list[BaseRoute]) -> None:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/forgotten")
    def forgotten() -> str:
        return ""

    with pytest.raises(ValueError, match="/forgotten"):
        open_paths([*routes, *app.routes])


def test_there_is_no_scope_but_those_of_keys() -> None:
    with pytest.raises(AssertionError):
        APIRouter(route_class=scoped("inferrence"))
