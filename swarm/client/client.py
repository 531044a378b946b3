"""`SwarmClient` and `AsyncSwarmClient`: the library's face."""

from __future__ import annotations

import os
import queue
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypedDict, Unpack

from backends.stage import Array, Output
from routing import wire
from routing.client import DirectoryClient
from routing.errors import DirectoryError
from routing.petals_messages import CALLED
from routing.planning.routes import missing
from routing.security import JoinToken, SecurityError
from routing.view import View
from swarm.client.actions import Emit, Finished, Notice, StepOutput
from swarm.client.driver import Driver
from swarm.client.tokenizer_download import fetch_tokenizer
from swarm.client.verify import Verdict, compare
from swarm.errors import BadRequest, Overloaded, SwarmError, Unavailable, UnknownModel
from swarm.sampling import Sampling
from swarm.system.identities import hold_identity, own_keys
from swarm.tokenizer import Detokenizer, Tokenizer

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
    grammar: str


@dataclass(frozen=True)
class ServedModel:
    """A model of the swarm. `missing` are the spans, as (start, end), that no ready server holds."""

    name: str
    blocks: int
    context_length: int
    servers: tuple[wire.ServerInfo, ...]
    missing: tuple[tuple[int, int], ...]

    @property
    def complete(self) -> bool:
        return not self.missing


class BaseClient:
    """What the two clients share: the connection to the directory and the driver."""

    def __init__(
        self,
        join: str | None = None,
        *,
        name: str = "client",
        timeout: float = 10.0,
        patience: float = 30.0,
        private: bool | Collection[str] = False,
    ) -> None:
        """
        Args:
            join: the join token; by default the one in the environment variable `SWARM_JOIN`.
            timeout: seconds to wait for the directory.
            patience: seconds that a session waits for a server of blocks that it has lost.
            private: let nobody else see tokens: the first and the last block are computed by servers with these
                public keys; True: by those that run from this `SWARM_HOME`. `docs/security.md` says what others learn
                all the same.

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
            own_name, identity = self._resources.enter_context(hold_identity(name))
            self._directory = DirectoryClient(token, identity, own_name, role=name, timeout=timeout)
            self._resources.callback(self._directory.close)
            try:
                self._directory.start()
            except DirectoryError as error:
                raise SwarmError(str(error)) from error
            self._driver = Driver(self._directory, identity, patience=patience, ends=_ends(private))
            self._resources.callback(self._driver.shut_down)
            self._resources = self._resources.pop_all()
        self._tokenizers: dict[str, Tokenizer | None] = {}
        self._tokenizer_lock = threading.Lock()

    @property
    def view(self) -> View:
        """What the directories say of the swarm now."""
        return self._directory.view

    @property
    def expelled(self) -> bool:
        """Whether the swarm has closed its doors to this peer; every request fails then."""
        return self._directory.banished is not None

    def models(self) -> list[ServedModel]:
        """What the swarm serves, by name. Upstream Petals' servers are left out: they take part in no session."""
        by_name: dict[str, list[wire.ServerInfo]] = {}
        for server in self._directory.view.servers.values():
            if not server.model.startswith(CALLED):
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


class SwarmClient(BaseClient):
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
        tokenizer = required(self.tokenizer(model), model)
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

    def __init__(
        self,
        driver: Driver,
        model: str,
        max_length: int,
        through: Sequence[wire.Hop] = (),
        without: frozenset[str] = frozenset(),
    ) -> None:
        self._driver = driver
        self.model = model
        self._answer: list[wire.Token] = []  # of the last generation
        self._sampling = Sampling()
        self._ids: list[int] = []
        self._position = 0
        self._closed = False
        self.max_length = max_length
        self.last: wire.Token | None = None
        self.notices: list[str] = []
        self._id = driver.open(model, max_length, through, without)

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
    def route(self) -> tuple[wire.Hop, ...]:
        """The servers that compute the session now, and their blocks; empty before its first use."""
        return self._driver.state(self._id)[1]

    @property
    def epoch(self) -> int:
        """How many times the session was opened: each change of its route makes it one more."""
        return self._driver.state(self._id)[0]

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
        prompt = [*self.ids, *as_ids(input_ids)]
        self._answer, self._sampling = [], Sampling(**sampling)
        inbox: queue.SimpleQueue[Emit | Finished] = queue.SimpleQueue()
        self._driver.generate(self._id, prompt, max_new_tokens, self._sampling, inbox.put)
        self._ids, self._position = prompt, len(prompt)
        finished = False
        try:
            while True:
                match inbox.get():
                    case Emit(wire.Token() as token):
                        self.last = token
                        self._answer.append(token)
                        self._ids.append(token.token)
                        self._position += 1
                        yield token.token
                    case Emit(Notice(text)):
                        self.notices.append(text)
                    case Finished(error):
                        finished = True
                        if error is not None:
                            raise error
                        return
        finally:
            if not finished and not self._closed:
                self._driver.cancel(self._id)

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
        return verified(self._driver, self.model, self.route, self._ids, self._answer, self._sampling, window)

    def step(self, input_ids: Sequence[int], output: Output = "logits", outputs: int | None = None) -> Array:
        """Compute `input_ids` at `position` and move it behind them.

        Args:
            outputs: for how many of the last tokens an output is wanted; None: for all.

        Returns:
            `[outputs, vocab]` float32 logits, or with `output="hidden"` the `[outputs, hidden]` states after the last
            norm.
        """
        ids = as_ids(input_ids)
        inbox: queue.SimpleQueue[Emit | Finished] = queue.SimpleQueue()
        self._driver.step(self._id, ids, self._position, output, inbox.put, outputs)
        result: Array | None = None
        while True:
            match inbox.get():
                case Emit(StepOutput(array)):
                    result = array
                case Emit(Notice(text)):
                    self.notices.append(text)
                case Finished(error):
                    if error is not None:
                        raise error
                    break
        assert result is not None
        self._ids[self._position :] = ids
        self._position += len(ids)
        return result


def verified(
    driver: Driver,
    model: str,
    route: Sequence[wire.Hop],
    ids: Sequence[int],
    answer: Sequence[wire.Token],
    sampling: Sampling,
    window: int = 16,
) -> Verdict:
    """What `ClientSession.verify` does, for an answer whose session may have ended.

    Args:
        route: the one that computed the answer's end.
        ids: prompt and answer.
    """
    if not answer or any(token.logprob is None for token in answer):
        raise BadRequest("there is nothing to verify: generate with logprobs=0 first")
    begin = secrets.randbelow(max(len(answer) - window, 0) + 1)
    compared = answer[begin : begin + window]
    start, end = compared[0].position, compared[-1].position + 1
    problem: SwarmError = Unavailable(
        "the answer cannot be verified: there is no second server for any part of its route"
    )
    for hop in secrets.SystemRandom().sample(list(route), len(route)):
        others = [other for other in route if other is not hop]
        with ClientSession(driver, model, end, others, frozenset({hop.peer})) as check:
            try:
                logits = check.step(ids[: end - 1], outputs=len(compared))
            except Overloaded as error:
                problem = error
                continue
            except Unavailable:
                continue
        logprobs = [token.logprob or 0.0 for token in compared]
        return compare(logits, ids[:end], start, logprobs, sampling, answer[0].position, hop)
    raise problem


def _ends(private: bool | Collection[str]) -> Callable[[], frozenset[str] | None]:
    """What tells the servers that may see tokens. Own ones are looked up each time, because they come and go."""
    if private is True:
        return own_keys
    told = frozenset(private) if private else None
    return lambda: told


def as_ids(input_ids: Sequence[int]) -> list[int]:
    """Plain ints out of a list, an array or a tensor of shape `[n]` or `[1, n]`."""
    values = input_ids.tolist() if hasattr(input_ids, "tolist") else list(input_ids)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    return [int(value) for value in values]


def required(tokenizer: Tokenizer | None, model: str) -> Tokenizer:
    if tokenizer is None:
        raise Unavailable(f"{model} has no tokenizer: use a session and token ids")
    return tokenizer
