"""From a prepared answer to the response: whole or as a stream, for a client that may leave, on a busy gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response

from openai_api import answer as answers
from openai_api.answer import Answer, sse
from openai_api.attendance import EventStream, attended
from openai_api.errors import ApiError

T = TypeVar("T")
Prepare = Callable[[], Awaitable[Answer]]


async def answered(
    request: Request,
    prepare: Prepare,
    stream: bool,
    failure: Callable[[ApiError], bytes] = lambda problem: sse(problem.body()),
) -> Response:
    """Generate, unless the client leaves. Errors before the first token still have a status of their own.

    Args:
        failure: the event that tells of an error once the stream has begun.
    """
    if not stream:
        return JSONResponse(await placed(request, lambda: _whole(prepare, request)))
    closing = request.app.state.closing
    events = _events(prepare, request)
    try:
        first = await attended(anext(events), request.receive, closing)
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events, closing, request.state.request_id, failure)


async def placed(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """Do the work once the gateway has room for it, unless the client leaves."""
    state = request.app.state

    async def doing() -> T:
        async with state.room.place():
            return await work()

    return await attended(doing(), request.receive, state.closing)


async def _whole(prepare: Prepare, request: Request) -> dict[str, Any]:
    state = request.app.state
    answer = await _prepared(prepare, request)
    return await answers.whole(answer, state.gateway.engine, state.metrics)


async def _events(prepare: Prepare, request: Request) -> AsyncGenerator[bytes, None]:
    state = request.app.state
    async with state.room.place():
        answer = await _prepared(prepare, request)
        async with aclosing(answers.events(answer, state.gateway.engine, state.metrics)) as events:
            async for event in events:
                yield event


async def _prepared(prepare: Prepare, request: Request) -> Answer:
    answer = await prepare()
    if request.app.state.console is not None:
        request.app.state.console.remember(answer)
    request.app.state.metrics.prompted.labels(answer.model).inc(answer.prompt_tokens)
    return answer
