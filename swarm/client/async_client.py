"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Self, Unpack

from backends.stage import Array, Output
from routing import wire
from swarm.client.actions import Emit, Finished, Notice, Routed, StepOutput
from swarm.client.client import BaseClient, ClientSession, SamplingOptions, Step, as_ids, required, verified
from swarm.client.driver import Link
from swarm.client.verify import Verdict
from swarm.sampling import Sampling
from swarm.tokenizer import Detokenizer, Tokenizer


class AsyncSwarmClient(BaseClient):
    """`SwarmClient` for asyncio. The work is done in the client's own thread, so any event loop will do."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    async def tokenizer(self, model: str) -> Tokenizer | None:
        return await asyncio.to_thread(self._load_tokenizer, model)

    async def links(self) -> dict[str, Link]:
        """The connections to servers that are up now, by key."""
        return await asyncio.wrap_future(self._driver.links())

    async def stream(
        self,
        model: str,
        input_ids: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        max_length: int | None = None,
    ) -> AsyncIterator[Step]:
        """The tokens that follow `input_ids`, and notices of what happens on the way; `Routed` where the route changes.

        Closing the generator stops the session on every hop.
        """
        ids = as_ids(input_ids)
        length = self._session_length(model, max_length or len(ids) + max_new_tokens)
        session = self._driver.open(model, length)
        epoch = 0
        try:
            inbox = _Inbox()
            self._driver.generate(session, ids, max_new_tokens, sampling or Sampling(), inbox.put)
            async for item in inbox:
                assert not isinstance(item, StepOutput)
                if isinstance(item, wire.Token) and item.epoch != epoch:
                    epoch, hops = item.epoch, self._driver.state(session)[1]
                    yield Routed(f"computed by {len(hops)} servers", hops)
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
        """Have a part of an answer computed anew, as `ClientSession.verify` does.

        Args:
            route: that of the last `Routed` in the answer's stream.
            ids: the prompt.
            answer: the tokens of the stream, made with `logprobs=0` or more.
        """
        sequence = [*as_ids(ids), *(token.token for token in answer)]
        return await asyncio.to_thread(verified, self._driver, model, route, sequence, answer, sampling, window)

    async def generate(
        self, model: str, prompt: str, max_new_tokens: int = 128, **sampling: Unpack[SamplingOptions]
    ) -> str:
        """The text that follows `prompt`, until a stop token or `max_new_tokens`."""
        tokenizer = required(await self.tokenizer(model), model)
        sampling.setdefault("stop_ids", tuple(sorted(tokenizer.stop_ids)))
        detokenizer, text = Detokenizer(tokenizer), []
        steps: Any = self.stream(model, tokenizer.encode(prompt), max_new_tokens, Sampling(**sampling))
        async with aclosing(steps):
            async for item in steps:
                if isinstance(item, wire.Token) and item.token not in sampling["stop_ids"]:
                    text.append(detokenizer.push(item.token))
        return "".join([*text, detokenizer.flush()])

    def session(self, model: str, max_length: int) -> AsyncClientSession:
        """A session that reserves `max_length` tokens on every hop once it is used."""
        return AsyncClientSession(ClientSession(self._driver, model, self._session_length(model, max_length)))


class AsyncClientSession:
    """`ClientSession`, awaited."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._session.close()

    @property
    def route(self) -> tuple[wire.Hop, ...]:
        """The servers that compute the session now, and their blocks; empty before its first use."""
        return self._session.route

    @property
    def ids(self) -> list[int]:
        return self._session.ids

    @property
    def position(self) -> int:
        return self._session.position

    @position.setter
    def position(self, value: int) -> None:
        self._session.position = value

    async def step(self, input_ids: Sequence[int], output: Output = "logits", outputs: int | None = None) -> Array:
        return await asyncio.to_thread(self._session.step, input_ids, output, outputs)

    async def verify(self, window: int = 16) -> Verdict:
        return await asyncio.to_thread(self._session.verify, window)

    async def stream(
        self, input_ids: Sequence[int], max_new_tokens: int, **sampling: Unpack[SamplingOptions]
    ) -> AsyncIterator[int]:
        tokens = self._session.stream(input_ids, max_new_tokens, **sampling)
        try:
            while (token := await asyncio.to_thread(next, tokens, None)) is not None:
                yield token
        finally:
            tokens.close()  # type: ignore[attr-defined]


class _Inbox:
    """Items from the driver's thread, awaited in the caller's loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Emit | Finished] = asyncio.Queue()

    def put(self, item: Emit | Finished) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop was closed: nobody is left to read
            return

    async def __aiter__(self) -> AsyncIterator[wire.Token | Notice | StepOutput]:
        while True:
            match await self._queue.get():
                case Emit(item):
                    yield item
                case Finished(error):
                    if error is not None:
                        raise error
                    return
