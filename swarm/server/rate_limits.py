"""Rate limits: how much one peer may say to a server. Pure, with injected time.

Work that a session waits for is bounded by the session's length, and free; everything else costs. A peer that floods
the server with anything at all is disconnected.
"""

from __future__ import annotations

from collections.abc import Callable

from routing import wire
from routing.limits import RateLimit

RATE, BURST = 200.0, 1000.0  # cost per second and at once, of one peer
FLOOD_RATE, FLOOD_BURST = 10_000.0, 30_000.0  # messages per second and at once, work included
USELESS_RATE, USELESS_BURST = 50.0, 3000.0  # of them, those that are no messages, or were refused as too many
BANNED_FOR = 10.0  # s

COSTS: dict[type[wire.Message], float] = {wire.Open: 2.0, wire.ListFiles: 2.0, wire.ReadFile: 4.0}


class MessageRates:
    """Message rates: how often each peer may say something that is no work of a session."""

    def __init__(self, clock: Callable[[], float], rate: float = RATE, burst: float = BURST) -> None:
        self._limit = RateLimit(rate, burst, clock)

    def wait(self, peer: str, message: wire.Message) -> float:
        """0: it may be answered. Otherwise the seconds to wait before the next one."""
        return self._limit.spend(peer, COSTS.get(type(message), 1.0))


class FloodGuard:
    """Flood guard: disconnects peers that say so much that it is not even read, and bans them for a while.

    ZeroMQ goes on receiving whether or not anything is read, so what is refused politely would fill the memory. A
    server that is busy reads slowly; hence the small limit for what is of no use, however fast it was said.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        rate: float = FLOOD_RATE,
        burst: float = FLOOD_BURST,
        useless_burst: float = USELESS_BURST,
    ) -> None:
        self._clock = clock
        self._limit = RateLimit(rate, burst, clock)
        self._useless = RateLimit(USELESS_RATE, useless_burst, clock)
        self._banned: dict[str, float] = {}

    def admit_message(self, peer: str) -> bool:
        """A message has come; whether it should be read."""
        if not self.admits(peer):
            return False
        if self._limit.spend(peer):
            self._ban(peer)
            return False
        return True

    def record_useless(self, peer: str) -> None:
        """What has come was no message, or one too many."""
        if self._useless.spend(peer):
            self._ban(peer)

    def _ban(self, peer: str) -> None:
        self._banned[peer] = self._clock() + BANNED_FOR

    def admits(self, peer: str) -> bool:
        """Whether the peer may connect. May be called from any thread."""
        until = self._banned.get(peer)
        if until is None:
            return True
        if self._clock() < until:
            return False
        self._banned.pop(peer, None)
        return True
