"""State of the gateway: what its endpoints work with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Self

from fastapi import Depends, Request

from openai_api.accounts.access import Accounts
from openai_api.accounts.principals import Principal
from openai_api.accounts.sign_in import SignIn
from openai_api.console.console import Console
from openai_api.gateway import Gateway
from openai_api.generation.metrics import Metrics
from openai_api.http.auth import maybe_principal_of, principal_of
from openai_api.http.concurrency import RequestQueue


@dataclass(frozen=True)
class GatewayState:
    """State of the gateway, one for each app.

    Attributes:
        queue: for how many requests there is room.
        closing: set when the gateway shuts down; answers that are being made end with an error then.
        console: what the page's console shows; None: there is none.
        accounts: who may use it besides the holder of its own key; None: no accounts.
        sign_in: lets members in by an OpenID provider.
    """

    gateway: Gateway
    metrics: Metrics
    queue: RequestQueue
    closing: asyncio.Event
    console: Console | None = None
    accounts: Accounts | None = None
    sign_in: SignIn | None = None

    @classmethod
    def make(
        cls,
        gateway: Gateway,
        *,
        queue: RequestQueue | None = None,
        closing: asyncio.Event | None = None,
        console: Console | None = None,
        accounts: Accounts | None = None,
        sign_in: SignIn | None = None,
    ) -> Self:
        """A state with metrics, a queue and an event of its own where none are given."""
        metrics = Metrics(gateway.engine)
        return cls(gateway, metrics, queue or RequestQueue(), closing or asyncio.Event(), console, accounts, sign_in)

    @classmethod
    def of(cls, request: Request) -> Self:
        """The state of the app that a request came to."""
        state = request.app.state.gateway
        assert isinstance(state, cls)
        return state


State = Annotated[GatewayState, Depends(GatewayState.of)]
Caller = Annotated[Principal, Depends(principal_of)]
MaybeCaller = Annotated[Principal | None, Depends(maybe_principal_of)]
