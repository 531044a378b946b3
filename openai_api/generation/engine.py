"""Engine: what the gateway needs of the swarm; `swarm.AsyncSwarmClient` offers it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from backends.stage import Array, Output
from routing import wire
from swarm import Notice, Sampling, ServedModel
from swarm.client.verify import Verdict
from swarm.tokenizer import Tokenizer

Step = wire.Token | Notice


class EngineSession(Protocol):
    """A sequence that is driven step by step."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @property
    def route(self) -> Sequence[wire.Hop]:
        """The servers that compute it now; none before its first use."""
        ...

    async def step(self, input_ids: Sequence[int], output: Output = "logits") -> Array:
        """Append the tokens; `[tokens, vocab]` float32 logits, those of the token after each; or, with `hidden`, the
        `[tokens, hidden]` states after the last norm."""
        ...


class Engine(Protocol):
    """Every method may raise `SwarmError`."""

    def models(self) -> Sequence[ServedModel]:
        """What the directory knows of, complete or not."""
        ...

    async def tokenizer(self, model: str) -> Tokenizer | None: ...

    def stream(
        self, model: str, input_ids: Sequence[int], max_new_tokens: int, sampling: Sampling | None = None
    ) -> AsyncIterator[Step]:
        """An async generator; closing it ends the session on every hop."""
        ...

    def session(self, model: str, max_length: int) -> EngineSession: ...

    async def verify(
        self,
        model: str,
        route: Sequence[wire.Hop],
        ids: Sequence[int],
        answer: Sequence[wire.Token],
        sampling: Sampling,
    ) -> Verdict:
        """Have a part of an answer to the prompt `ids` computed anew, with one hop of its route replaced."""
        ...
