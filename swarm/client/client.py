"""Client: `SwarmClient` and its `ClientSession`, which block the calling thread."""

from __future__ import annotations

import queue
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import Self, Unpack

from backends.stage import Array, Output
from routing import wire
from swarm.client.actions import Emit, Finished, Notice, StepOutput
from swarm.client.base import (
    BaseClient,
    BaseSession,
    RouteWatch,
    SamplingOptions,
    ServedModel,
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

__all__ = ["ClientSession", "SamplingOptions", "ServedModel", "SwarmClient"]


class SwarmClient(BaseClient):
    """Client of a swarm: generates through it.

        with SwarmClient(join="swarm1:...") as client:
            print(client.generate("smollm2-135m", "The capital of France is", max_new_tokens=16))

    Every method raises `SwarmError` or one of its subclasses (`swarm.errors`), with a text for people.
    `AsyncSwarmClient` has the same methods.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every session and the connections."""
        self._close()

    def wait_complete(self, model: str, timeout: float = 60.0) -> None:
        """Wait until every block of `model` has a ready server.

        Raises:
            Unavailable: that did not come about within `timeout` seconds.
        """
        self._wait_complete(model, timeout)

    def tokenizer(self, model: str) -> Tokenizer | None:
        """The model's tokenizer, fetched from a server of the swarm; None if it has none."""
        return self._load_tokenizer(model)

    def links(self) -> dict[str, Link]:
        """The connections to servers that are up now, by key."""
        return self._driver.links().result()

    def session(self, model: str, max_length: int) -> ClientSession:
        """A session that reserves `max_length` tokens on every hop once it is used."""
        return ClientSession(self._driver, model, self._session_length(model, max_length))

    def stream(
        self,
        model: str,
        input_ids: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        max_length: int | None = None,
    ) -> Generator[StreamItem, None, None]:
        """The tokens that follow `input_ids`, and notices of what happens on the way; `Routed` where the route changes.

        Closing the generator stops the session on every hop.
        """
        ids = as_ids(input_ids)
        session = self._open(model, max_length or len(ids) + max_new_tokens)
        watch = RouteWatch(self._driver, session)
        try:
            inbox = _Inbox()
            self._driver.generate(session, ids, max_new_tokens, sampling or Sampling(), inbox.put)
            for item in inbox:
                assert not isinstance(item, StepOutput)
                if (change := watch.change_before(item)) is not None:
                    yield change
                yield item
        finally:
            self._driver.close(session)

    def verify(
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
        return _verified(self._driver, model, Verification(route, sequence, answer, sampling, window))

    def generate(self, model: str, prompt: str, max_new_tokens: int = 128, **sampling: Unpack[SamplingOptions]) -> str:
        """The text that follows `prompt`, until a stop token or `max_new_tokens`."""
        return "".join(self.stream_text(model, prompt, max_new_tokens, **sampling))

    def stream_text(
        self, model: str, prompt: str, max_new_tokens: int = 128, **sampling: Unpack[SamplingOptions]
    ) -> Generator[str, None, None]:
        """The same, piece by piece."""
        tokenizer = required(self.tokenizer(model), model)
        sampling.setdefault("stop_ids", tuple(sorted(tokenizer.stop_ids)))
        detokenizer = Detokenizer(tokenizer)
        with closing(self.stream(model, tokenizer.encode(prompt), max_new_tokens, Sampling(**sampling))) as items:
            for item in items:
                if isinstance(item, wire.Token) and item.token not in sampling["stop_ids"]:
                    yield detokenizer.push(item.token)
        yield detokenizer.flush()


class ClientSession(BaseSession):
    """Session of a client: `AsyncClientSession` has the same methods, awaited."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the session's KV caches. A second call does nothing."""
        self._close()

    def stream(
        self, input_ids: Sequence[int], max_new_tokens: int, **sampling: Unpack[SamplingOptions]
    ) -> Generator[int, None, None]:
        """Append `input_ids` at `position` and yield the tokens that follow, a stop token included.

        The swarm goes on by itself; leaving the iterator early stops it.
        """
        inbox = _Inbox()
        self._begin_generation(input_ids, max_new_tokens, Sampling(**sampling), inbox.put)
        try:
            for item in inbox:
                if (token := self._note(item)) is not None:
                    yield token
        finally:
            if not inbox.is_finished:
                self._cancel()

    def verify(self, window: int = 16) -> Verdict:
        """Have a part of the last answer computed anew by a route in which one hop, drawn by lot, is another server.

        The answer must have been made with `logprobs=0` or more.

        Args:
            window: tokens of the answer to compare, at a place drawn by lot.

        Raises:
            Unavailable: no hop of the route has a second server.
            Overloaded: those that there are have no room.
            BadRequest: there is no answer with log-probabilities.
        """
        return _verified(self._driver, self.model, self._verification(window))

    def step(self, input_ids: Sequence[int], output: Output = "logits", outputs: int | None = None) -> Array:
        """Compute `input_ids` at `position` and move it behind them.

        Args:
            outputs: for how many of the last tokens an output is wanted; None: for all.

        Returns:
            `[outputs, vocab]` float32 logits, or with `output="hidden"` the `[outputs, hidden]` states after the last
            norm.
        """
        ids = as_ids(input_ids)
        inbox = _Inbox()
        self._driver.step(self._id, ids, self._position, output, inbox.put, outputs)
        result: Array | None = None
        try:
            for item in inbox:
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


def _verified(driver: Driver, model: str, verification: Verification) -> Verdict:
    problem: SwarmError = verification.unavailable()
    for hop, others in verification.candidates():
        with ClientSession(driver, model, verification.length, others, frozenset({hop.peer})) as second:
            try:
                logits = second.step(verification.inputs, outputs=verification.outputs)
            except Overloaded as error:
                problem = error
            except Unavailable:
                pass
            else:
                return verification.verdict(logits, hop)
    raise problem


class _Inbox:
    """Items from the driver's thread, waited for in the caller's."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Emit | Finished] = queue.SimpleQueue()
        self.put = self._queue.put
        self.is_finished = False

    def __iter__(self) -> Iterator[wire.Token | Notice | StepOutput]:
        while True:
            match self._queue.get():
                case Emit(item):
                    yield item
                case Finished(error):
                    self.is_finished = True
                    if error is not None:
                        raise error
                    return
