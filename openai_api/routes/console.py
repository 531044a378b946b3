"""Routes of the console. They serve this gateway's own page and may change with it, so the API's document omits
them.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from openai_api.console.console import Console, seen_by
from openai_api.errors import ApiError
from openai_api.http.auth import own_page
from openai_api.http.disconnects import EventStream, run_until_disconnect
from openai_api.http.scopes import scoped
from openai_api.routes.state import Caller, State

router = APIRouter(prefix="/api", include_in_schema=False, route_class=scoped("console"))
admin_router = APIRouter(prefix="/api", include_in_schema=False, route_class=scoped("admin"))


class Invitation(BaseModel):
    """Invitation to the swarm: `expires` in seconds from now; `uses`: how many machines may join with it."""

    model_config = ConfigDict(extra="forbid")

    expires: Annotated[float, Field(ge=60, le=7 * 86400)] = 3600.0
    uses: Annotated[int, Field(ge=1, le=1000)] = 1


def console_of(state: State) -> Console:
    assert state.console is not None, "the routes of the console are added with it"
    return state.console


Shown = Annotated[Console, Depends(console_of)]


@router.get("/swarm")
async def swarm(console: Shown, caller: Caller) -> Response:
    found = seen_by(await console.snapshot(), caller.invites)
    return JSONResponse(found, headers={"Cache-Control": "no-store"})


@router.get("/events")
async def events(request: Request, state: State, console: Shown, caller: Caller) -> Response:
    """Server-sent events: `past` and `swarm` first, then `happened` and `swarm` with every change."""
    stream = console.events(caller.invites)
    try:
        first = await run_until_disconnect(anext(stream), request.receive, state.closing)
    except BaseException:
        await stream.aclose()
        raise
    return EventStream(first, stream, state.closing, request.state.request_id)


@router.get("/answers/{answer}")
async def answer(answer: str, console: Shown) -> Response:
    """The servers that computed an answer of this gateway."""
    return JSONResponse(console.route(answer), headers={"Cache-Control": "no-store"})


@admin_router.post("/tokens")
async def invite(body: Invitation, request: Request, console: Shown, caller: Caller) -> Response:
    """A join token for further machines."""
    if own_page(request) is False:
        raise ApiError(403, "Join tokens are made for this gateway's own page only.", code="cross_site")
    if not caller.invites:
        message = (
            "You may make no join tokens here. Run 'swarm token create' where the directory runs, or ask an owner."
        )
        raise ApiError(403, message, code="no_admin_key")
    made = await console.invite(body.expires, body.uses)
    return JSONResponse(made, headers={"Cache-Control": "no-store"})
