"""Which of the pending work a server computes next: pure bookkeeping, no clock and no sockets.

Continuous batching (Yu et al., OSDI 2022): each time the stage is free, everything that can go together is packed into
one batch. Decode steps of all sessions go first; what is left of the token budget is filled with slices of prompts, so
that a long prompt never holds up somebody else's stream for longer than a chunk.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from backends import Span
from backends.stage import Array, Batch, Output, Row


@dataclass(frozen=True)
class Work:
    """Tokens of one session that wait to be computed.

    Attributes:
        inputs: `[tokens]` ids or `[tokens, hidden]` hidden states.
        outputs: for how many of the last tokens the tail owes an output.
        last: nothing more belongs to the step that this is part of.
    """

    session: str
    epoch: int
    position: int
    inputs: Array
    span: Span
    outputs: int = 0
    output: Output = "logits"
    rewind: bool = False
    last: bool = True

    @property
    def length(self) -> int:
        return len(self.inputs)

    def split(self, length: int) -> tuple[Work, Work]:
        """The first `length` tokens, and the rest."""
        rest = self.length - length
        owed = min(self.outputs, rest)
        return (
            replace(self, inputs=self.inputs[:length], outputs=self.outputs - owed, last=False),
            replace(self, inputs=self.inputs[length:], position=self.position + length, outputs=owed, rewind=False),
        )


class Scheduler:
    """Pending work by session, in order of arrival."""

    def __init__(self, budget: int, batched: bool) -> None:
        """
        Args:
            budget: tokens of a batch; a decode step is taken even beyond it.
            batched: False: one session at a time.
        """
        self._budget = budget
        self._batched = batched
        self._queues: dict[str, deque[Work]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, work: Work) -> None:
        self._queues.setdefault(work.session, deque()).append(work)

    def pending(self, session: str) -> int:
        """Tokens of the session that wait."""
        return sum(work.length for work in self._queues.get(session, ()))

    def drop(self, session: str) -> None:
        self._queues.pop(session, None)

    def take(self) -> list[Work]:
        """Work for one batch: at most one row per session, all over the same span and with the same kind of output.

        Sessions that were taken go to the end of the line.
        """
        if not self._queues:
            return []
        heads = [queue[0] for queue in self._queues.values()]
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
