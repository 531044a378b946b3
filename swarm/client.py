"""`SwarmClient` and `AsyncSwarmClient`: the library's face."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from backends.stage import Array, Output
from routing import wire
from routing.client import DirectoryClient
from routing.errors import DirectoryError
from routing.routes import missing
from routing.security import JoinToken, SecurityError
from routing.view import View
from swarm.driver import Driver
from swarm.errors import BadRequest, SwarmError, Unavailable, UnknownModel
from swarm.identities import claimed
from swarm.sampling import Sampling
from swarm.session import Done, Emit, Notice, StepOutput
from swarm.tokenizer import Detokenizer, Tokenizer
from swarm.vocabulary import fetch_tokenizer

Step = wire.Token | Notice


class SamplingOptions(TypedDict, total=False):
    """Keyword arguments of the sampling; see `routing.wire.Sampling` for their meaning and defaults (greedy)."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    stop_ids: tuple[int, ...]
    logprobs: int
    seed: int


@dataclass(frozen=True)
class ServedModel:
    """A model of the swarm. `missing` are the spans, as (start, end), that no ready server holds."""

    name: str
    blocks: int
    context_length: int
    servers: tuple[wire.Server, ...]
    missing: tuple[tuple[int, int], ...]

    @property
    def complete(self) -> bool:
        return not self.missing


class _Base:
    """What the two clients share: the connection to the directory and the driver."""

    def __init__(self, join: str | None = None, *, name: str = "client", timeout: float = 10.0) -> None:
        """
        Args:
            join: the join token; by default the one in the environment variable `SWARM_JOIN`.
            timeout: seconds to wait for the directory.

        Raises:
            SwarmError: no token or a bad one, or no directory answers.
        """
        join = join or os.environ.get("SWARM_JOIN")
        if not join:
            raise SwarmError("no join token: give one, or set SWARM_JOIN to it")
        try:
            token = JoinToken.parse(join)
        except SecurityError as error:
            raise SwarmError(str(error)) from error
        self._resources = ExitStack()
        with self._resources:
            own_name, identity = self._resources.enter_context(claimed(name))
            self._directory = DirectoryClient(token, identity, own_name, role=name, timeout=timeout)
            self._resources.callback(self._directory.close)
            try:
                self._directory.start()
            except DirectoryError as error:
                raise SwarmError(str(error)) from error
            self._driver = Driver(self._directory, identity)
            self._resources.callback(self._driver.shut_down)
            self._resources = self._resources.pop_all()
        self._tokenizers: dict[str, Tokenizer | None] = {}
        self._tokenizer_lock = threading.Lock()

    def models(self) -> list[ServedModel]:
        """What the swarm serves, by name."""
        by_name: dict[str, list[wire.Server]] = {}
        for server in self._directory.view.servers.values():
            by_name.setdefault(server.model, []).append(server)
        return [
            ServedModel(
                name,
                servers[0].blocks,
                servers[0].context_length,
                tuple(sorted(servers, key=lambda server: (server.start, server.end, server.name))),
                tuple(missing(servers, servers[0].blocks)),
            )
            for name, servers in sorted(by_name.items())
        ]

    def wait_complete(self, model: str, timeout: float = 60.0) -> None:
        """Wait until every block of `model` has a ready server. Blocks the calling thread.

        Raises:
            Unavailable: that did not come about within `timeout` seconds.
        """

        def complete(view: View) -> bool:
            servers = view.serving(model)
            return bool(servers) and not missing(servers, servers[0].blocks)

        try:
            self._directory.wait_for(complete, timeout)
        except TimeoutError:
            spans = next((served.missing for served in self.models() if served.name == model), ())
            raise Unavailable(f"{model} was not complete within {timeout:g} s", spans) from None

    def _model(self, name: str) -> ServedModel:
        models = self.models()
        for model in models:
            if model.name == name:
                return model
        names = ", ".join(model.name for model in models) or "no model at all yet"
        raise UnknownModel(f"the swarm does not serve {name!r}; it serves {names}")

    def _session_length(self, model: str, wanted: int) -> int:
        """Raises: BadRequest: longer than the model's context."""
        context = self._model(model).context_length
        if context and wanted > context:
            raise BadRequest(
                f"{wanted} tokens (prompt and answer together) are more than the context of {model}, {context}: "
                f"shorten the prompt or ask for fewer tokens"
            )
        return wanted

    def _load_tokenizer(self, model: str) -> Tokenizer | None:
        with self._tokenizer_lock:
            if model not in self._tokenizers:
                self._tokenizers[model] = fetch_tokenizer(self._model(model).servers, self._driver.call)
            return self._tokenizers[model]

    def _close(self) -> None:
        self._resources.close()


class SwarmClient(_Base):
    """Generates through a swarm.

        with SwarmClient(join="swarm1:...") as client:
            print(client.generate("smollm2-135m", "The capital of France is", max_new_tokens=16))

    Every method raises `SwarmError` or one of its subclasses (`swarm.errors`), with a text for people.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._close()

    def tokenizer(self, model: str) -> Tokenizer | None:
        """The model's tokenizer, fetched from a server of the swarm; None if it has none."""
        return self._load_tokenizer(model)

    def session(self, model: str, max_length: int) -> ClientSession:
        """A session that reserves `max_length` tokens on every hop once it is used."""
        return ClientSession(self._driver, model, self._session_length(model, max_length))

    def generate(self, model: str, prompt: str, max_new_tokens: int = 128, **sampling: Unpack[SamplingOptions]) -> str:
        """The text that follows `prompt`, until a stop token or `max_new_tokens`."""
        return "".join(self.stream_text(model, prompt, max_new_tokens, **sampling))

    def stream_text(
        self, model: str, prompt: str, max_new_tokens: int = 128, **sampling: Unpack[SamplingOptions]
    ) -> Iterator[str]:
        """The same, piece by piece."""
        tokenizer = _required(self.tokenizer(model), model)
        ids = tokenizer.encode(prompt)
        sampling.setdefault("stop_ids", tuple(sorted(tokenizer.stop_ids)))
        with self.session(model, len(ids) + max_new_tokens) as session:
            detokenizer = Detokenizer(tokenizer)
            for token in session.stream(ids, max_new_tokens, **sampling):
                if token not in sampling["stop_ids"]:
                    yield detokenizer.push(token)
            yield detokenizer.flush()


class ClientSession:
    """One sequence on the swarm; its KV caches stay on the hops until it is closed.

    Attributes:
        position: where the next step or prompt begins; may be set back.
        last: what came with the newest token: its log-probability and how the generation ended.
        notices: what happened on the way that a user may want to know, e.g. a server that was replaced.
    """

    def __init__(self, driver: Driver, model: str, max_length: int) -> None:
        self._driver = driver
        self._ids: list[int] = []
        self._position = 0
        self._closed = False
        self.max_length = max_length
        self.last: wire.Token | None = None
        self.notices: list[str] = []
        self._id = driver.open(model, max_length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the session's KV caches. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._driver.close(self._id)

    @property
    def ids(self) -> list[int]:
        """The sequence up to `position`."""
        return self._ids[: self._position]

    @property
    def position(self) -> int:
        return self._position

    @position.setter
    def position(self, value: int) -> None:
        if not 0 <= value <= len(self._ids):
            raise BadRequest(f"position {value} is outside the session's sequence of {len(self._ids)} tokens")
        self._position = value

    def stream(
        self, input_ids: Sequence[int], max_new_tokens: int, **sampling: Unpack[SamplingOptions]
    ) -> Iterator[int]:
        """Append `input_ids` at `position` and yield the tokens that follow, a stop token included.

        The swarm goes on by itself; leaving the iterator early stops it.
        """
        prompt = [*self.ids, *_as_ids(input_ids)]
        inbox: queue.SimpleQueue[Emit | Done] = queue.SimpleQueue()
        self._driver.generate(self._id, prompt, max_new_tokens, Sampling(**sampling), inbox.put)
        self._ids, self._position = prompt, len(prompt)
        finished = False
        try:
            while True:
                match inbox.get():
                    case Emit(wire.Token() as token):
                        self.last = token
                        self._ids.append(token.token)
                        self._position += 1
                        yield token.token
                    case Emit(Notice(text)):
                        self.notices.append(text)
                    case Done(error):
                        finished = True
                        if error is not None:
                            raise error
                        return
        finally:
            if not finished and not self._closed:
                self._driver.cancel(self._id)

    def step(self, input_ids: Sequence[int], output: Output = "logits") -> Array:
        """Compute `input_ids` at `position` and move it behind them.

        Returns:
            `[tokens, vocab]` float32 logits, or with `output="hidden"` the `[tokens, hidden]` states after the last
            norm.
        """
        ids = _as_ids(input_ids)
        inbox: queue.SimpleQueue[Emit | Done] = queue.SimpleQueue()
        self._driver.step(self._id, ids, self._position, output, inbox.put)
        result: Array | None = None
        while True:
            match inbox.get():
                case Emit(StepOutput(array)):
                    result = array
                case Emit(Notice(text)):
                    self.notices.append(text)
                case Done(error):
                    if error is not None:
                        raise error
                    break
        assert result is not None
        self._ids[self._position :] = ids
        self._position += len(ids)
        return result


class AsyncSwarmClient(_Base):
    """`SwarmClient` for asyncio. The work is done in the client's own thread, so any event loop will do."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    async def tokenizer(self, model: str) -> Tokenizer | None:
        return await asyncio.to_thread(self._load_tokenizer, model)

    async def stream(
        self,
        model: str,
        input_ids: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        max_length: int | None = None,
    ) -> AsyncIterator[Step]:
        """The tokens that follow `input_ids`, and notices of what happens on the way.

        Closing the generator stops the session on every hop.
        """
        ids = _as_ids(input_ids)
        length = self._session_length(model, max_length or len(ids) + max_new_tokens)
        session = self._driver.open(model, length)
        try:
            inbox = _Inbox()
            self._driver.generate(session, ids, max_new_tokens, sampling or Sampling(), inbox.put)
            async for item in inbox:
                assert not isinstance(item, StepOutput)
                yield item
        finally:
            self._driver.close(session)

    async def generate(
        self, model: str, prompt: str, max_new_tokens: int = 128, **sampling: Unpack[SamplingOptions]
    ) -> str:
        """The text that follows `prompt`, until a stop token or `max_new_tokens`."""
        tokenizer = _required(await self.tokenizer(model), model)
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
    def ids(self) -> list[int]:
        return self._session.ids

    @property
    def position(self) -> int:
        return self._session.position

    @position.setter
    def position(self, value: int) -> None:
        self._session.position = value

    async def step(self, input_ids: Sequence[int], output: Output = "logits") -> Array:
        return await asyncio.to_thread(self._session.step, input_ids, output)

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
        self._queue: asyncio.Queue[Emit | Done] = asyncio.Queue()

    def put(self, item: Emit | Done) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop was closed: nobody is left to read
            return

    async def __aiter__(self) -> AsyncIterator[wire.Token | Notice | StepOutput]:
        while True:
            match await self._queue.get():
                case Emit(item):
                    yield item
                case Done(error):
                    if error is not None:
                        raise error
                    return


def _as_ids(input_ids: Sequence[int]) -> list[int]:
    """Plain ints out of a list, an array or a tensor of shape `[n]` or `[1, n]`."""
    values = input_ids.tolist() if hasattr(input_ids, "tolist") else list(input_ids)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return [int(value) for value in values]


def _required(tokenizer: Tokenizer | None, model: str) -> Tokenizer:
    if tokenizer is None:
        raise Unavailable(f"{model} has no tokenizer: use a session and token ids")
    return tokenizer
