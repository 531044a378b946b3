"""Base of the two clients: what `SwarmClient` and `AsyncSwarmClient` share, and everything that does not wait."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypedDict

from backends.stage import Array
from routing import wire
from routing.client import DirectoryClient
from routing.errors import DirectoryError
from routing.planning.routes import missing
from routing.security import JoinToken, SecurityError
from routing.view import View
from swarm.client.actions import Emit, Finished, Notice, Routed, StepOutput
from swarm.client.driver import Driver
from swarm.client.tokenizer_download import fetch_tokenizer
from swarm.client.verify import Verdict, compare
from swarm.errors import BadRequest, SwarmError, Unavailable, UnknownModel
from swarm.sampling import Sampling
from swarm.system.identities import hold_identity, own_keys
from swarm.tokenizer import Tokenizer

StreamItem = wire.Token | Notice


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
    """Base client: the connection to the directory, and the driver of the sessions."""

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
            private: show tokens to no other servers: the first and the last block are computed by servers with these
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
            self._driver = Driver(
                self._directory, identity, patience=patience, ends=servers_that_may_see_tokens(private)
            )
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
            if server.protocol == "ring":
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

    def _wait_complete(self, model: str, timeout: float) -> None:
        """Block the calling thread until every block of `model` has a ready server.

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

    def _open(self, model: str, max_length: int) -> str:
        """The id of a new session. Raises: UnknownModel, BadRequest: there is no such model, or it is too short."""
        return self._driver.open(model, self._session_length(model, max_length))

    def _load_tokenizer(self, model: str) -> Tokenizer | None:
        with self._tokenizer_lock:
            if model not in self._tokenizers:
                self._tokenizers[model] = fetch_tokenizer(self._model(model).servers, self._driver.call)
            return self._tokenizers[model]

    def _close(self) -> None:
        self._resources.close()


class BaseSession:
    """Base session: one sequence on the swarm; its KV caches stay on the hops until it is closed.

    Attributes:
        model: its name in the swarm.
        max_length: tokens that every hop reserves.
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
        """
        Args:
            through: hops that its first route is to have.
            without: servers that it never uses.
        """
        self.model = model
        self.max_length = max_length
        self.last: wire.Token | None = None
        self.notices: list[str] = []
        self._driver = driver
        self._id = driver.open(model, max_length, through, without)
        self._ids: list[int] = []
        self._position = 0
        self._answer: list[wire.Token] = []  # of the last generation
        self._sampling = Sampling()
        self._is_closed = False

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
        """Where the next step or prompt begins; may be set back."""
        return self._position

    @position.setter
    def position(self, value: int) -> None:
        if not 0 <= value <= len(self._ids):
            raise BadRequest(f"position {value} is outside the session's sequence of {len(self._ids)} tokens")
        self._position = value

    def _begin_generation(
        self, input_ids: Sequence[int], new: int, sampling: Sampling, sink: Callable[[Emit | Finished], None]
    ) -> None:
        prompt = [*self.ids, *as_ids(input_ids)]
        self._answer, self._sampling = [], sampling
        self._driver.generate(self._id, prompt, new, sampling, sink)
        self._ids, self._position = prompt, len(prompt)

    def _note(self, item: wire.Token | Notice | StepOutput) -> int | None:
        """Take in what a generation or a step has given; the token id, where it is one."""
        match item:
            case wire.Token():
                self.last = item
                self._answer.append(item)
                self._ids.append(item.token)
                self._position += 1
                return item.token
            case Notice(text):
                self.notices.append(text)
        return None

    def _end_step(self, ids: Sequence[int]) -> None:
        self._ids[self._position :] = ids
        self._position += len(ids)

    def _cancel(self) -> None:
        """Stop what is under way, so that the session can be used for something else."""
        if not self._is_closed:
            self._driver.cancel(self._id)

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._driver.close(self._id)

    def _verification(self, window: int) -> Verification:
        return Verification(self.route, self._ids, self._answer, self._sampling, window)


class Verification:
    """Verification of an answer: which part is to be computed anew, by which routes, and what that says of it.

    Raises:
        BadRequest: there is no answer with log-probabilities.
    """

    def __init__(
        self,
        route: Sequence[wire.Hop],
        ids: Sequence[int],
        answer: Sequence[wire.Token],
        sampling: Sampling,
        window: int,
    ) -> None:
        """
        Args:
            route: the one that computed the answer's end.
            ids: prompt and answer.
            window: tokens of the answer to compare, at a place drawn by lot.
        """
        if not answer or any(token.logprob is None for token in answer):
            raise BadRequest("there is nothing to verify: generate with logprobs=0 first")
        begin = secrets.randbelow(max(len(answer) - window, 0) + 1)
        self._compared = answer[begin : begin + window]
        self._route = list(route)
        self._sampling = sampling
        self._prompt_length = answer[0].position
        self._ids = ids[: self._compared[-1].position + 1]
        self.inputs = self._ids[:-1]
        self.length = len(self._ids)
        self.outputs = len(self._compared)

    def candidates(self) -> Iterator[tuple[wire.Hop, list[wire.Hop]]]:
        """A hop to be replaced by another server, and the others, which stay; in an order drawn by lot."""
        for hop in secrets.SystemRandom().sample(self._route, len(self._route)):
            yield hop, [other for other in self._route if other is not hop]

    def verdict(self, logits: Array, hop: wire.Hop) -> Verdict:
        """What the logits that another server of the hop's blocks has helped to compute say of the answer."""
        logprobs = [token.logprob or 0.0 for token in self._compared]
        start = self._compared[0].position
        return compare(logits, self._ids, start, logprobs, self._sampling, self._prompt_length, hop)

    @staticmethod
    def unavailable() -> Unavailable:
        return Unavailable("the answer cannot be verified: there is no second server for any part of its route")


class RouteWatch:
    """Route watch: tells when the tokens of a session begin to come over another route."""

    def __init__(self, driver: Driver, session: str) -> None:
        self._driver = driver
        self._session = session
        self._epoch = 0

    def change_before(self, item: wire.Token | Notice | StepOutput) -> Routed | None:
        """The route, where the item is the first token that came over it."""
        if not isinstance(item, wire.Token) or item.epoch == self._epoch:
            return None
        self._epoch, hops = item.epoch, self._driver.state(self._session)[1]
        return Routed(f"computed by {len(hops)} servers", hops)


def servers_that_may_see_tokens(private: bool | Collection[str]) -> Callable[[], frozenset[str] | None]:
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
