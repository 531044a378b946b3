"""Health: whether the hops of a session still work, told from what they answer and when; pure.

Nothing is asked while tokens come. When none has come for a while, all hops are probed; the thread that computes
answers, so one that is slow is told from one that hangs. How long an answer may take depends on how fast the session
used to be.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from routing import wire

QUIET = 1.0  # s without news until the hops are probed, or 4 of the session's usual intervals
HANG = 5.0  # s without an answer until a hop that has worked before is lost, or 8 usual intervals
HANG_AT_FIRST = 20.0  # s for a hop that has not yet shown how fast it is
PAUSE = 1.0  # s between two rounds of probes
STALL = 30.0  # s in which no hop has work, though one of them should
SMOOTHING = 0.2  # weight of the newest interval


@dataclass(frozen=True)
class SendProbes:
    """Ask all hops."""


@dataclass(frozen=True)
class Unresponsive:
    """These hops have not answered for so many seconds."""

    peers: frozenset[str]
    seconds: float


@dataclass(frozen=True)
class Stalled:
    """All hops answer, and none of them has anything to do: work was lost on the way."""


@dataclass
class HealthMonitor:
    """Health monitor of the hops of one session."""

    _news: float = 0.0  # when there was progress, or the session began to run
    _interval: float = 0.0  # s between two tokens, averaged; 0: not known
    _proven: set[str] = field(default_factory=set)  # hops that took part in progress
    _probed: float | None = None  # when the round of probes that is under way was sent
    _alive: dict[str, wire.Alive] = field(default_factory=dict)
    _same: tuple[float, dict[str, wire.Alive]] = (0.0, {})  # since when all hops have said the same

    def begin(self, now: float) -> None:
        """The session runs, perhaps over other hops than before."""
        self._news, self._probed, self._same = now, None, (now, {})

    def progress(self, peers: AbstractSet[str], now: float) -> None:
        """A token or a result has come, by way of these hops."""
        if peers <= self._proven:
            interval = now - self._news
            self._interval += (interval - self._interval) * (SMOOTHING if self._interval else 1.0)
        self._proven |= peers
        self._news, self._probed = now, None

    def forget(self, peers: AbstractSet[str]) -> None:
        """These hops failed."""
        self._proven -= peers

    def answered(self, peer: str, message: wire.Alive) -> None:
        self._alive[peer] = message

    def check(self, peers: AbstractSet[str], now: float) -> SendProbes | Unresponsive | Stalled | None:
        """What is to be done about the hops of a session that runs."""
        if self._probed is None:
            if now - self._news < max(QUIET, 4 * self._interval):
                return None
            self._probed, self._alive = now, {}
            return SendProbes()
        waited = now - self._probed
        if silent := frozenset(peers - self._alive.keys()):
            patience = max(HANG, 8 * self._interval) if silent <= self._proven else HANG_AT_FIRST
            return Unresponsive(silent, patience) if waited >= patience else None
        if waited < PAUSE:
            return None
        self._probed = None
        busy = any(alive.accepted > alive.computed for alive in self._alive.values())
        if busy or self._alive != self._same[1]:
            self._same = now, self._alive
        return Stalled() if now - self._same[0] >= STALL else None
