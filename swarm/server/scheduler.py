"""Scheduler: which of the pending work a server computes next; pure bookkeeping, no clock and no sockets.

Continuous batching (Yu et al., OSDI 2022): each time the stage is free, everything that can go together is packed into
one batch. Decode steps of all sessions go first; what is left of the token budget is filled with slices of prompts, so
that a long prompt never holds up the stream of another session for longer than a chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from backends import Span
from backends.stage import Array, Batch, Output, Row

SLOW_BATCH = 1.0  # s; batches that take longer are made smaller
LEAST_BUDGET = 16  # tokens


@dataclass(frozen=True)
class Work:
    """Tokens of one session that wait to be computed.

    Attributes:
        inputs: `[tokens]` ids or `[tokens, hidden]` hidden states.
        outputs: for how many of the last tokens the tail owes an output.
        starts: see `wire.Forward`; the session is set back before this is computed.
        last: nothing more belongs to the step that this is part of.
        sender: the hop that sent it, to be told when it was taken; empty where it does not wait for that.
    """

    session: str
    epoch: int
    position: int
    inputs: Array
    span: Span
    outputs: int = 0
    output: Output = "logits"
    starts: tuple[int, ...] = ()
    last: bool = True
    sender: bytes = b""
    size: int = 0  # bytes as they came

    @property
    def length(self) -> int:
        return len(self.inputs)

    def split(self, length: int) -> tuple[Work, Work]:
        """The first `length` tokens, and the rest."""
        rest = self.length - length
        owed = min(self.outputs, rest)
        return (
            replace(self, inputs=self.inputs[:length], outputs=self.outputs - owed, last=False, sender=b"", size=0),
            replace(self, inputs=self.inputs[length:], position=self.position + length, outputs=owed, starts=()),
        )


class Scheduler:
    """Pending work by session, in order of arrival."""

    def __init__(self, budget: int, batched: bool) -> None:
        """
        Args:
            budget: tokens of a batch at most; a decode step is taken even beyond it.
            batched: False: one session at a time.
        """
        self._budget = self._most = budget
        self._batched = batched
        self._queues: dict[str, deque[Work]] = {}

    def pace(self, tokens: int, seconds: float) -> None:
        """Fit the budget to how long a batch took: a server that is slow must still look at its sockets often enough
        to be told from one that hangs."""
        if seconds > SLOW_BATCH and tokens > LEAST_BUDGET:
            self._budget = max(LEAST_BUDGET, min(self._budget, tokens) // 2)
        elif seconds < SLOW_BATCH / 4 and tokens >= self._budget:
            self._budget = min(2 * self._budget, self._most)

    def add(self, work: Work) -> None:
        self._queues.setdefault(work.session, deque()).append(work)

    def all_held(self, held: Callable[[Work], bool]) -> bool:
        """Whether nothing that is pending can be computed now."""
        return all(held(queue[0]) for queue in self._queues.values())

    def pending(self, session: str) -> int:
        """Tokens of the session that wait."""
        return sum(work.length for work in self._queues.get(session, ()))

    def put_back(self, work: Work) -> None:
        """It was taken too early: next in the line of its session."""
        self._queues.setdefault(work.session, deque()).appendleft(work)

    def drop(self, session: str) -> list[Work]:
        """Forget what is pending of the session; gives it back."""
        return list(self._queues.pop(session, ()))

    def take(self, held: Callable[[Work], bool] = lambda work: False) -> list[Work]:
        """Work for one batch: at most one row per session, all over the same span and with the same kind of output.

        Sessions that were taken go to the end of the line.

        Args:
            held: whether some work has to wait.
        """
        heads = [queue[0] for queue in self._queues.values() if not held(queue[0])]
        if not heads:
            return []
        first = heads[0]
        fitting = [work for work in heads if (work.span, work.output) == (first.span, first.output)]
        if not self._batched:
            fitting = [first]
        left = self._budget
        taken = []
        for work in [w for w in fitting if w.length == 1] + [w for w in fitting if w.length > 1]:
            if work.length > 1 and left <= 0:
                continue
            taken.append(self._pop(work.session, max(left, 1)))
            left -= taken[-1].length
        return taken

    def _pop(self, session: str, at_most: int) -> Work:
        queue = self._queues.pop(session)
        work = queue.popleft()
        if work.length > at_most:
            work, rest = work.split(at_most)
            queue.appendleft(rest)
        if queue:
            self._queues[session] = queue
        return work


def pack(works: list[Work]) -> Batch:
    """One batch out of what `take` gave."""
    rows = [Row(work.session, work.position, work.length, work.outputs) for work in works]
    inputs = works[0].inputs if len(works) == 1 else np.concatenate([work.inputs for work in works])
    return Batch(inputs, rows, works[0].span, works[0].output)
