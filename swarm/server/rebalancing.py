"""Rebalancing: when a server that chose its span itself moves to another. Pure, with injected time."""

from __future__ import annotations

import random
from collections.abc import Iterable
from enum import Enum

from backends import Span
from routing import wire
from routing.planning.assign import better_span

EVERY = 60.0  # s between two looks, on average
SETTLE = 10.0  # s from the announcement that it would leave until it does: longer than any view of the swarm is old


class RebalanceStep(Enum):
    """Step of a server that may move."""

    STAY = "stay"  # as it is
    DRAIN = "drain"  # take no new sessions: a move is likely
    RETURN = "return"  # take them again: it is not needed elsewhere any longer


class Rebalancer:
    """Rebalancer: decides whether its server stays, drains or moves, in two looks some seconds apart.

    Args:
        key: the server's public key.
        capacity: blocks that it can hold.
        now: s, of the clock that `look` is told.
        chance: spreads the looks of several servers.
    """

    def __init__(self, key: str, capacity: int, now: float, chance: random.Random | None = None) -> None:
        self._key = key
        self._capacity = capacity
        self._chance = chance or random.Random(key)
        self._draining = False
        self._due = self._next(now)

    def look(self, servers: Iterable[wire.ServerInfo], blocks: int, now: float) -> RebalanceStep | Span:
        """What to do now; a span: move there.

        Args:
            servers: all of the model, this one as it is.
        """
        if now < self._due:
            return RebalanceStep.STAY
        span = better_span(servers, self._key, self._capacity, blocks)
        if not self._draining:
            self._draining = span is not None
            self._due = now + SETTLE if self._draining else self._next(now)
            return RebalanceStep.DRAIN if self._draining else RebalanceStep.STAY
        self._draining, self._due = False, self._next(now)
        return Span(*span) if span is not None else RebalanceStep.RETURN

    def _next(self, now: float) -> float:
        return now + EVERY * self._chance.uniform(0.5, 1.5)
