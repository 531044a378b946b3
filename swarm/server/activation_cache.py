"""Activation cache: what a server keeps of the hidden states that it pushed; enough to feed a newcomer that takes the
next hop's place.

Pure bookkeeping within a budget of bytes. The outputs of a session are one run of positions without a hole; where the
budget is exceeded, the sessions that were used longest ago lose theirs, because they can be replayed from token ids.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from backends.stage import Array


@dataclass
class _Run:
    start: int
    end: int
    parts: list[Array] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(part.nbytes for part in self.parts)


class ActivationCache:
    """Activation cache: the hidden states that a hop has pushed, within a budget of bytes.

    Args:
        budget: bytes of all sessions together.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._runs: OrderedDict[str, _Run] = OrderedDict()  # those used last come last
        self.size = 0  # bytes

    def add(self, session: str, position: int, rows: Array) -> None:
        """Keep `[tokens, hidden]` outputs from `position` on, in place of what is known of these positions."""
        self.truncate(session, position)
        run = self._runs.get(session)
        if run is None or run.end != position:
            self.drop(session)
            run = self._runs[session] = _Run(position, position)
        # A part of the outputs of a whole batch would keep all of them alive.
        run.parts.append(rows.copy() if isinstance(rows.base, np.ndarray) and rows.base.size > rows.size else rows)
        run.end += len(rows)
        self.size += rows.nbytes
        self._runs.move_to_end(session)
        while self.size > self._budget:
            self.drop(next(iter(self._runs)))

    def start(self, session: str, end: int) -> int:
        """The first position from which the outputs are here up to `end`; `end` itself where there are none."""
        run = self._runs.get(session)
        return run.start if run is not None and run.start <= end <= run.end else end

    def parts(self, session: str, start: int, end: int, length: int) -> Iterator[tuple[int, Array]]:
        """The outputs of `start:end`, as (position, rows) of at most `length` rows.

        Raises:
            KeyError: they are not here any longer.
        """
        run = self._runs[session]
        if not run.start <= start <= end <= run.end:
            raise KeyError(session)
        at, wanted = run.start, start
        slices: list[Array] = []  # rows from `wanted` on that were not yielded yet
        for part in run.parts:
            low, high = max(start - at, 0), min(end - at, len(part))
            at += len(part)
            while low < high:
                room = length - sum(map(len, slices))
                slices.append(part[low : min(low + room, high)])
                low += len(slices[-1])
                if sum(map(len, slices)) == length:
                    yield wanted, _joined(slices)
                    wanted, slices = wanted + length, []
        if slices:
            yield wanted, _joined(slices)

    def truncate(self, session: str, length: int) -> None:
        """Forget what lies at `length` and beyond."""
        run = self._runs.get(session)
        if run is None or length >= run.end:
            return
        if length <= run.start:
            self.drop(session)
            return
        before = run.size
        while run.end > length:
            part = run.parts.pop()
            run.end -= len(part)
            if run.end < length:
                run.parts.append(part[: length - run.end].copy())  # a view would keep the whole part alive
                run.end = length
        self.size -= before - run.size

    def drop(self, session: str) -> None:
        run = self._runs.pop(session, None)
        if run is not None:
            self.size -= run.size


def _joined(slices: list[Array]) -> Array:
    return slices[0] if len(slices) == 1 else np.concatenate(slices)
