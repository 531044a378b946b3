"""The cheapest chain of spans over a range of blocks in which no span is used twice. Pure; knows no servers.

Costs are whole nanoseconds, so that chains that cost the same compare equal.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

EFFORT = 64  # restricted problems to solve before the best chain is no longer insisted on

Edge = Callable[[int | None, int | None], int]


class Reach(NamedTuple):
    """A span that may be used, or any part of it. `cost` is nanoseconds per block."""

    start: int
    end: int
    cost: int


class Leg(NamedTuple):
    """Blocks `start:end` of the span with this number."""

    which: int
    start: int
    end: int


class _Limits(NamedTuple):
    """What a branch of the search allows: spans cut to `[first, last)` segments, segments given to one span."""

    within: Mapping[int, tuple[int, int]]
    given: Mapping[int, int]

    def allow(self, index: int, segment: int) -> bool:
        first, last = self.within.get(index, (0, segment + 1))
        return first <= segment < last and self.given.get(segment, index) == index


def shortest(reaches: Sequence[Reach], start: int, end: int, edge: Edge, least: int = 0) -> list[Leg] | None:
    """The cheapest chain of legs that covers `start:end`; among equals the spans that come first. None: there is none.

    A leg may begin and end where any span does. A shortest path over (span, block) finds the chain; where it comes back
    to a span that it has left, which a server cannot do within one session, the search branches on where that span is
    used. After `EFFORT` branches, which takes a swarm made for the purpose, chains are limited to those whose spans
    reach ever further: still complete, perhaps not the cheapest.

    Args:
        edge: cost of going from one span to another; None stands for the side that asks.
        least: no edge between two spans costs less. The better this bound, the less there is to look at.
    """
    bounds = {bound for reach in reaches for bound in (reach.start, reach.end) if start < bound < end}
    cuts = [start, *sorted(bounds), end]
    segments = list(itertools.pairwise(cuts))
    holders = [
        [i for i, reach in enumerate(reaches) if reach.start <= low and high <= reach.end] for low, high in segments
    ]
    if not all(holders):
        return None
    costs: dict[tuple[int | None, int | None], int] = {}

    def known_edge(one: int | None, other: int | None) -> int:
        if (one, other) not in costs:
            costs[one, other] = edge(one, other)
        return costs[one, other]

    def solve(limits: _Limits, onward: bool = False) -> tuple[int, list[int]] | None:
        return _walk(reaches, segments, holders, known_edge, least, limits, onward)

    order = itertools.count()
    first = _Limits({}, {})
    queue: list[tuple[int, int, list[int], _Limits]] = []
    if found := solve(first):
        queue.append((found[0], next(order), found[1], first))
    for _ in range(EFFORT):
        if not queue:
            break
        _, _, walk, limits = heapq.heappop(queue)
        if (again := _comes_back(walk)) is None:
            return _legs(walk, segments)
        for branch in _branches(limits, *again):
            if found := solve(branch):
                heapq.heappush(queue, (found[0], next(order), found[1], branch))
    found = solve(first, onward=True)
    return None if found is None else _legs(found[1], segments)


def _walk(
    reaches: Sequence[Reach],
    segments: Sequence[tuple[int, int]],
    holders: Sequence[Sequence[int]],
    edge: Edge,
    least: int,
    limits: _Limits,
    onward: bool,
) -> tuple[int, list[int]] | None:
    """Cost of the cheapest walk and its span for each segment. It may come back to a span, unless `onward`."""
    best: dict[int, int] = {}
    came_from: list[dict[int, int]] = []
    for at, (low, high) in enumerate(segments):
        here: dict[int, int] = {}
        origin: dict[int, int] = {}
        ranked = sorted((cost, index) for index, cost in best.items())
        for index in holders[at]:
            if not limits.allow(index, at):
                continue
            cost = edge(None, index) if at == 0 else best.get(index)
            origin[index] = index
            for before, previous in ranked:
                if cost is not None and before + least >= cost:
                    break  # the rest cost at least as much
                if previous == index or (onward and not _further(reaches, previous, index)):
                    continue
                if cost is None or before + edge(previous, index) < cost:
                    cost, origin[index] = before + edge(previous, index), previous
            if cost is not None:
                here[index] = cost + (high - low) * reaches[index].cost
        best = here
        came_from.append(origin)
    if not best:
        return None
    cost, last = min((cost + edge(index, None), index) for index, cost in best.items())
    walk = [last]
    for origin in reversed(came_from[1:]):
        walk.append(origin[walk[-1]])
    return cost, walk[::-1]


def _further(reaches: Sequence[Reach], one: int, other: int) -> bool:
    return (reaches[one].end, reaches[one].start, one) < (reaches[other].end, reaches[other].start, other)


def _comes_back(walk: Sequence[int]) -> tuple[int, int] | None:
    """A span that is left and used again, and the segment at which it has been left; None: there is none."""
    left: dict[int, int] = {}
    for at, (previous, index) in enumerate(itertools.pairwise(walk), 1):
        if previous != index:
            if index in left:
                return index, left[index]
            left[previous] = at
    return None


def _branches(limits: _Limits, index: int, at: int) -> list[_Limits]:
    """A chain uses the span in one piece: before the segment `at`, after it, or across it."""
    first, last = limits.within.get(index, (0, 1 << 31))
    return [
        _Limits({**limits.within, index: (first, min(last, at))}, limits.given),
        _Limits({**limits.within, index: (max(first, at + 1), last)}, limits.given),
        _Limits(limits.within, {**limits.given, at: index}),
    ]


def _legs(walk: Sequence[int], segments: Sequence[tuple[int, int]]) -> list[Leg]:
    legs: list[Leg] = []
    for index, run in itertools.groupby(zip(walk, segments, strict=True), key=lambda pair: pair[0]):
        parts = [segment for _, segment in run]
        legs.append(Leg(index, parts[0][0], parts[-1][1]))
    return legs
