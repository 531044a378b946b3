"""Asyncio client: `AsyncSwarmClient` and its `AsyncClientSession`, the same as `swarm.client.client`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Self, Unpack

from backends.stage import Array, Output
from routing import wire
from swarm.client.actions import Emit, Finished, Notice, StepOutput
from swarm.client.base import (
    BaseClient,
    BaseSession,
    RouteWatch,
    SamplingOptions,
    StreamItem,
    Verification,
    as_ids,
    required,
)
from swarm.client.driver import Driver, Link
from swarm.client.verify import Verdict
from swarm.errors import Overloaded, SwarmError, Unavailable
from swarm.sampling import Sampling
from swarm.tokenizer import Detokenizer, Tokenizer


class AsyncSwarmClient(BaseClient):
    """Client for asyncio: `SwarmClient`, awaited. The work is done in a thread of its own, so any event loop will do.

    A task that is cancelled while it waits stops what it waits for on every hop.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every session and the connections."""
        await asyncio.to_thread(self._close)

    async def wait_complete(self, model: str, timeout: float = 60.0) -> None:
        """Wait until every block of `model` has a ready server.

        Raises:
            Unavailable: that did not come about within `timeout` seconds.
        """
        await asyncio.to_thread(self._wait_complete, model, timeout)

    async def tokenizer(self, model: str) -> Tokenizer | None:
        """The model's tokenizer, fetched from a server of the swarm; None if it has none."""
        return await asyncio.to_thread(self._load_tokenizer, model)

    async def links(self) -> dict[str, Link]:
        """The connections to servers that are up now, by key."""
        return await asyncio.wrap_future(self._driver.links())

    def session(self, model: str, max_length: int) -> AsyncClientSession:
        """A session that reserves `max_length` tokens on every hop once it is used."""
        return AsyncClientSession(self._driver, model, self._session_length(model, max_length))

    async def stream(
        self,
        model: str,
        input_ids: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        max_length: int | None = None,
    ) -> AsyncGenerator[StreamItem, None]:
        """The tokens that follow `input_ids`, and notices of what happens on the way; `Routed` where the route changes.

        Closing the generator stops the session on every hop.
        """
        ids = as_ids(input_ids)
        session = self._open(model, max_length or len(ids) + max_new_tokens)
        watch = RouteWatch(self._driver, session)
        try:
            inbox = _AsyncInbox()
            self._driver.generate(session, ids, max_new_tokens, sampling or Sampling(), inbox.put)
            async for item in inbox:
                assert not isinstance(item, StepOutput)
                if (change := watch.change_before(item)) is not None:
                    yield change
                yield item
        finally:
            self._driver.close(session)

    async def verify(
        self,
        model: str,
        route: Sequence[wire.Hop],
        ids: Sequence[int],
        answer: Sequence[wire.Token],
        sampling: Sampling,
        window: int = 16,
    ) -> Verdict:
        """Have a part of an answer computed anew, as `AsyncClientSession.verify` does.

        Args:
            route: that of the last `Routed` in the answer's stream.
            ids: the prompt.
            answer: the tokens of the stream, made with `logprobs=0` or more.
        """
        sequence = [*as_ids(ids), *(token.token for token in answer)]
        return await _verified(self._driver, model, Verification(route, sequence, answer, sampling, window))

    async def generate(
        self, model: str, prompt: str, max_new_tokens: int = 128, **sampling: Unpack[SamplingOptions]
    ) -> str:
        """The text that follows `prompt`, until a stop token or `max_new_tokens`."""
        async with aclosing(self.stream_text(model, prompt, max_new_tokens, **sampling)) as pieces:
            return "".join([piece async for piece in pieces])

    async def stream_text(
        self, model: str, prompt: str, max_new_tokens: int = 128, **sampling: Unpack[SamplingOptions]
    ) -> AsyncGenerator[str, None]:
        """The same, piece by piece."""
        tokenizer = required(await self.tokenizer(model), model)
        sampling.setdefault("stop_ids", tuple(sorted(tokenizer.stop_ids)))
        detokenizer = Detokenizer(tokenizer)
        async with aclosing(
            self.stream(model, tokenizer.encode(prompt), max_new_tokens, Sampling(**sampling))
        ) as items:
            async for item in items:
                if isinstance(item, wire.Token) and item.token not in sampling["stop_ids"]:
                    yield detokenizer.push(item.token)
        yield detokenizer.flush()


class AsyncClientSession(BaseSession):
    """Session of an asyncio client: `ClientSession`, awaited. What is cancelled ends on the swarm too."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Free the session's KV caches. A second call does nothing."""
        self._close()

    async def stream(
        self, input_ids: Sequence[int], max_new_tokens: int, **sampling: Unpack[SamplingOptions]
    ) -> AsyncGenerator[int, None]:
        """Append `input_ids` at `position` and yield the tokens that follow, a stop token included.

        The swarm goes on by itself; closing the generator stops it.
        """
        inbox = _AsyncInbox()
        self._begin_generation(input_ids, max_new_tokens, Sampling(**sampling), inbox.put)
        try:
            async for item in inbox:
                if (token := self._note(item)) is not None:
                    yield token
        finally:
            if not inbox.is_finished:
                self._cancel()

    async def verify(self, window: int = 16) -> Verdict:
        """Have a part of the last answer computed anew by a route in which one hop, drawn by lot, is another server.

        The answer must have been made with `logprobs=0` or more.

        Args:
            window: tokens of the answer to compare, at a place drawn by lot.

        Raises:
            Unavailable: no hop of the route has a second server.
            Overloaded: those that there are have no room.
            BadRequest: there is no answer with log-probabilities.
        """
        return await _verified(self._driver, self.model, self._verification(window))

    async def step(self, input_ids: Sequence[int], output: Output = "logits", outputs: int | None = None) -> Array:
        """Compute `input_ids` at `position` and move it behind them.

        Args:
            outputs: for how many of the last tokens an output is wanted; None: for all.

        Returns:
            `[outputs, vocab]` float32 logits, or with `output="hidden"` the `[outputs, hidden]` states after the last
            norm.
        """
        ids = as_ids(input_ids)
        inbox = _AsyncInbox()
        self._driver.step(self._id, ids, self._position, output, inbox.put, outputs)
        result: Array | None = None
        try:
            async for item in inbox:
                if isinstance(item, StepOutput):
                    result = item.array
                else:
                    self._note(item)
        finally:
            if not inbox.is_finished:
                self._cancel()
        assert result is not None
        self._end_step(ids)
        return result


async def _verified(driver: Driver, model: str, verification: Verification) -> Verdict:
    problem: SwarmError = verification.unavailable()
    for hop, others in verification.candidates():
        async with AsyncClientSession(driver, model, verification.length, others, frozenset({hop.peer})) as second:
            try:
                logits = await second.step(verification.inputs, outputs=verification.outputs)
            except Overloaded as error:
                problem = error
            except Unavailable:
                pass
            else:
                return verification.verdict(logits, hop)
    raise problem


class _AsyncInbox:
    """Items from the driver's thread, awaited in the caller's loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Emit | Finished] = asyncio.Queue()
        self.is_finished = False

    def put(self, item: Emit | Finished) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop was closed, and what waited for the item with it
            return

    async def __aiter__(self) -> AsyncIterator[wire.Token | Notice | StepOutput]:
        while True:
            match await self._queue.get():
                case Emit(item):
                    yield item
                case Finished(error):
                    self.is_finished = True
                    if error is not None:
                        raise error
                    return
