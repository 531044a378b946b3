"""From a prepared answer to the response: whole or as a stream, for a client that may leave, on a busy gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response

from openai_api.accounts.access import MeteredRequest
from openai_api.errors import ApiError
from openai_api.generation import generation as answers
from openai_api.generation.engine import Engine
from openai_api.generation.generation import Answer, sse
from openai_api.http.disconnects import EventStream, run_until_disconnect

T = TypeVar("T")
Prepare = Callable[[], Awaitable[Answer]]


async def answered(
    request: Request,
    model: str,
    prepare: Prepare,
    stream: bool,
    failure: Callable[[ApiError], bytes] = lambda problem: sse(problem.body()),
) -> Response:
    """Generate, unless the client leaves. Errors before the first token still have a status of their own.

    Args:
        model: which the request asks for.
        failure: the event that tells of an error once the stream has begun.
    """
    if not stream:
        return JSONResponse(await placed(request, model, lambda turn: _whole(prepare, request, turn)))
    closing = request.app.state.closing
    events = _events(prepare, request, model)
    try:
        first = await run_until_disconnect(anext(events), request.receive, closing)
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events, closing, request.state.request_id, failure)


async def placed(request: Request, model: str | None, work: Callable[[MeteredRequest], Awaitable[T]]) -> T:
    """Do the work once the caller may have it done and the gateway has room for it, unless the client leaves."""
    state = request.app.state

    async def doing() -> T:
        async with turn_of(request, model) as turn, state.room.place():
            return await work(turn)

    return await run_until_disconnect(doing(), request.receive, state.closing)


def turn_of(request: Request, model: str | None) -> MeteredRequest:
    """Raises: ApiError: there is no such model."""
    state = request.app.state
    name = state.gateway.meant(model).name
    return MeteredRequest(state.accounts, request.state.caller, name, lambda: names_of(state.gateway.engine))


def names_of(engine: Engine) -> dict[str, str]:
    """The names of the servers that are there, by key."""
    return {server.key: server.name for model in engine.models() for server in model.servers}


async def _whole(prepare: Prepare, request: Request, turn: MeteredRequest) -> dict[str, Any]:
    state = request.app.state
    answer = await _prepared(prepare, request, turn)
    return await answers.whole(answer, state.gateway.engine, state.metrics)


async def _events(prepare: Prepare, request: Request, model: str) -> AsyncGenerator[bytes, None]:
    state = request.app.state
    async with turn_of(request, model) as turn, state.room.place():
        answer = await _prepared(prepare, request, turn)
        async with aclosing(answers.events(answer, state.gateway.engine, state.metrics)) as events:
            async for event in events:
                yield event


async def _prepared(prepare: Prepare, request: Request, turn: MeteredRequest) -> Answer:
    answer = await prepare()
    turn.occupy(min(len(answer.plans), answers.AT_ONCE))
    turn.prompt, turn.work = answer.prompt_tokens, answer.work
    if request.app.state.console is not None:
        request.app.state.console.remember(answer)
    request.app.state.metrics.prompted.labels(answer.model).inc(answer.prompt_tokens)
    return answer
