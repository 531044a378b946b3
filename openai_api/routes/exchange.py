"""Exchange: one request and its answer, on a gateway that is busy or shuts down, with a client that may leave."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Annotated, TypeVar

from fastapi import Depends, Request
from starlette.responses import JSONResponse, Response

from openai_api.accounts.access import MeteredRequest
from openai_api.errors import ApiError
from openai_api.generation import generation
from openai_api.generation.engine import Engine
from openai_api.generation.generation import Answer, sse
from openai_api.http.auth import principal_of
from openai_api.http.disconnects import EventStream, run_until_disconnect
from openai_api.routes.state import GatewayState, State

T = TypeVar("T")


def openai_failure(problem: ApiError) -> bytes:
    """The event that tells of an error in a stream of OpenAI's."""
    return sse(problem.body())


class Exchange:
    """Exchange: admits a request, waits for its work, writes its answer. What it holds is given back once the answer is
    sent.
    """

    def __init__(self, request: Request, state: GatewayState, held: AsyncExitStack) -> None:
        self._request = request
        self._state = state
        self._held = held
        self._metered: MeteredRequest | None = None

    async def admit(self, model: str | None) -> MeteredRequest:
        """Wait until the caller's key and the gateway have room for the request.

        Args:
            model: as the request names it; None: the only one that there is.

        Raises:
            ApiError: there is no such model, the key may not use it, or not now; too many requests wait.
            ClientGone: the client went away.
        """
        state = self._state
        name = state.gateway.meant(model).name
        names = lambda: server_names(state.gateway.engine)  # noqa: E731 - looked up when the request ends
        metered = MeteredRequest(state.accounts, principal_of(self._request), name, names)

        async def enter() -> None:
            await self._held.enter_async_context(metered)
            await self._held.enter_async_context(state.queue.slot())

        await self.wait_for(enter())
        self._metered = metered
        return metered

    async def wait_for(self, work: Awaitable[T]) -> T:
        """The result of the work, unless the client leaves or the gateway shuts down: then the work is cancelled."""
        return await run_until_disconnect(work, self._request.receive, self._state.closing)

    async def answer(
        self, planned: Awaitable[Answer], stream: bool, failure: Callable[[ApiError], bytes] = openai_failure
    ) -> Response:
        """Generate an answer, whole or as a stream. Errors before the first token still have a status of their own.

        Args:
            failure: the event that tells of an error once the stream has begun.
        """
        if not stream:
            return JSONResponse(await self.wait_for(self._whole(planned)))
        events = self._events(planned)
        try:
            first = await self.wait_for(anext(events))
        except BaseException:
            await events.aclose()
            raise
        return EventStream(first, events, self._state.closing, self._request.state.request_id, failure)

    async def _whole(self, planned: Awaitable[Answer]) -> generation.Json:
        answer = self._begin(await planned)
        return await generation.whole(answer, self._state.gateway.engine, self._state.metrics)

    async def _events(self, planned: Awaitable[Answer]) -> AsyncGenerator[bytes, None]:
        answer = self._begin(await planned)
        written = generation.events(answer, self._state.gateway.engine, self._state.metrics)
        async with aclosing(written) as events:
            async for event in events:
                yield event

    def _begin(self, answer: Answer) -> Answer:
        assert self._metered is not None, "the request was not admitted"
        self._metered.occupy(min(len(answer.plans), generation.AT_ONCE))
        self._metered.prompt, self._metered.work = answer.prompt_tokens, answer.work
        if self._state.console is not None:
            self._state.console.remember(answer)
        self._state.metrics.prompted.labels(answer.model).inc(answer.prompt_tokens)
        return answer


def server_names(engine: Engine) -> dict[str, str]:
    """The names of the servers that are there, by key."""
    return {server.key: server.name for model in engine.models() for server in model.servers}


async def _exchange(request: Request, state: State) -> AsyncIterator[Exchange]:
    async with AsyncExitStack() as held:
        yield Exchange(request, state, held)


Exchanged = Annotated[Exchange, Depends(_exchange)]
