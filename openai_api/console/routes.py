"""The routes of the console. They serve this gateway's own page and may change with it, so the API's document omits
them.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from openai_api.console.console import Console, seen_by
from openai_api.errors import ApiError
from openai_api.http.auth import own_page
from openai_api.http.disconnects import EventStream, run_until_disconnect

router = APIRouter(prefix="/api", include_in_schema=False)


class Invitation(BaseModel):
    """`expires` in seconds from now; `uses`: how many machines may join with it."""

    model_config = ConfigDict(extra="forbid")

    expires: Annotated[float, Field(ge=60, le=7 * 86400)] = 3600.0
    uses: Annotated[int, Field(ge=1, le=1000)] = 1


def _console(request: Request) -> Console:
    console: Console = request.app.state.console
    return console


@router.get("/swarm")
async def swarm(request: Request) -> Response:
    found = seen_by(await _console(request).snapshot(), request.state.caller.invites)
    return JSONResponse(found, headers={"Cache-Control": "no-store"})


@router.get("/events")
async def events(request: Request) -> Response:
    """Server-sent events: `past` and `swarm` first, then `happened` and `swarm` with every change."""
    state = request.app.state
    stream = _console(request).events(request.state.caller.invites)
    try:
        first = await run_until_disconnect(anext(stream), request.receive, state.closing)
    except BaseException:
        await stream.aclose()
        raise
    return EventStream(first, stream, state.closing, request.state.request_id)


@router.get("/answers/{answer}")
async def answer(answer: str, request: Request) -> Response:
    """Who computed an answer of this gateway."""
    return JSONResponse(_console(request).route(answer), headers={"Cache-Control": "no-store"})


@router.post("/tokens")
async def invite(body: Invitation, request: Request) -> Response:
    """A join token for further machines."""
    if own_page(request) is False:
        raise ApiError(403, "Join tokens are made for this gateway's own page only.", code="cross_site")
    if not request.state.caller.invites:
        message = (
            "You may make no join tokens here. Run 'swarm token create' where the directory runs, or ask an owner."
        )
        raise ApiError(403, message, code="no_admin_key")
    made = await _console(request).invite(body.expires, body.uses)
    return JSONResponse(made, headers={"Cache-Control": "no-store"})
