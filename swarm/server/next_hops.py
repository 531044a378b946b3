"""The hops that a server pushes to: connections, how much is on the way to each, and which cannot be reached."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from collections.abc import Set as AbstractSet

import zmq

from backends.stage import Array
from routing import wire
from routing.links import Connected, Dialer, Lost
from routing.security import short_id

log = logging.getLogger(__name__)

COUNTED = 64 << 10  # bytes of a message from which on it counts for the window
WINDOW = 32 << 20  # bytes of activations that may be on the way to one hop, or wait there
GRACE = 5.0  # s until a hop that cannot be reached is taken for lost


class NextHops:
    """Next hops of a server: its connections to them, and how much is on the way."""

    def __init__(self, dialer: Dialer, clock: Callable[[], float]) -> None:
        self._dialer = dialer
        self._clock = clock
        self._window: Counter[str] = Counter()  # bytes on the way to each
        self._down_since: dict[str, float] = {}

    def dial(self, hop: wire.Hop) -> bool:
        """Clients say who the next hop is. False: that is no key, or there are no more sockets to be had."""
        if hop.peer not in self._dialer:
            self._down_since[hop.peer] = self._clock()
        try:
            self._dialer.dial(hop.peer, hop.addresses)
        except (zmq.ZMQError, ValueError) as error:
            log.warning("cannot dial %s: %s", short_id(hop.peer), error)
            self._down_since.pop(hop.peer, None)
            return False
        return True

    def send(self, hop: wire.Hop, message: wire.Message, array: Array | None = None) -> bool:
        """False: it takes no more messages."""
        if not self._dialer.send(hop.peer, message, array):
            return False
        if array is not None and array.nbytes >= COUNTED:
            self._window[hop.peer] += array.nbytes
        return True

    def has_room(self, peer: str) -> bool:
        """Whether more activations may be sent to it; single decode steps always may."""
        return self._window[peer] < WINDOW

    def credited(self, peer: str, size: int) -> None:
        """It has taken so many bytes in."""
        self._window[peer] = max(self._window[peer] - size, 0)

    def noticed(self, event: Connected | Lost) -> bool:
        """Whether what was under way to the peer is gone."""
        match event:
            case Connected(peer):
                self._down_since.pop(peer, None)
            case Lost(peer, "closed"):
                del self._window[peer]
                self._down_since[peer] = self._clock()
                return True
            case Lost(peer, _):
                self._down_since.setdefault(peer, self._clock())
        return False

    def unreachable(self) -> list[str]:
        """Those that have been out of reach for too long."""
        now = self._clock()
        return [peer for peer, since in self._down_since.items() if now - since > GRACE]

    def keep_only(self, needed: AbstractSet[str]) -> None:
        """Hang up on all others."""
        for peer in self._dialer.peers() - needed:
            self._dialer.hang_up(peer)
            self._down_since.pop(peer, None)
            del self._window[peer]
