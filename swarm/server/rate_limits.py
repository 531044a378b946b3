"""What one peer may take of a server: room in the KV cache, sessions, messages. Pure, with injected time.

Room. A gateway that is alone with a server may use all of it; a member who holds room that others want must let them
have their share. The share of an owner is the capacity divided by the number of owners, the one who asks included.
Whoever would stay within its share gets in at the cost of owners that are over theirs: of those, sessions give way that
were not used for a moment or that have been there for long. While somebody within its share waits, nobody over his gets
more. A client whose session has to give way can replay it, here or elsewhere.

Messages. Work that a session waits for is bounded by the session's length, and free; everything else costs. Whoever
floods the server with anything at all is put out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from routing import wire
from routing.limits import RateLimit

MAX_SESSIONS = 256  # of one owner
IDLE_AFTER = 60.0  # s without a message until a session gives way to anybody
RESTING_AFTER = 15.0  # s without a message until one of an owner who is over its share gives way
SETTLED_AFTER = 60.0  # s since it was opened until one of an owner who is over its share gives way even while it works
WANTED_FOR = 3.0  # s for which a refusal for want of room is remembered; clients ask again in half a second
MAX_WAITING = 1000  # owners of which that is remembered

RATE, BURST = 200.0, 1000.0  # cost per second and at once, of one peer
FLOOD_RATE, FLOOD_BURST = 10_000.0, 30_000.0  # messages per second and at once, work included
USELESS_RATE, USELESS_BURST = 50.0, 3000.0  # of them, those that are no messages, or were refused as too many
BANNED_FOR = 10.0  # s

COSTS: dict[type[wire.Message], float] = {wire.Open: 2.0, wire.ListFiles: 2.0, wire.ReadFile: 4.0}


class Reservation(Protocol):
    """A session, as far as room is concerned. `left`: when its client was found to be gone; None: it is there."""

    session: str
    owner: str
    max_length: int
    used: float
    opened: float
    left: float | None


Held = TypeVar("Held", bound=Reservation)


def giving_way(
    held: Iterable[Held], capacity: int, owner: str, need: int, now: float, keep: str = ""
) -> Iterator[Held]:
    """Sessions that may be closed to make room for `need` more tokens of `owner`, in the order to close them.

    First those whose client has left, then those that nobody has used for long, then those of owners who hold more
    than their share, if `owner` will hold no more than its own.

    Args:
        keep: a session that stays in any case.
    """
    seated = sorted(held, key=lambda each: each.used)
    holds = holdings(seated)
    seated = [each for each in seated if each.session != keep]
    unused = [each for each in seated if each.left is not None or now - each.used > IDLE_AFTER]
    for each in sorted(unused, key=lambda each: each.left is None):
        holds[each.owner] -= each.max_length
        yield each
    if holds[owner] + need > share_of(holds, capacity, [owner]):
        return
    for each in seated:
        if each in unused or each.owner == owner:
            continue
        settled = now - each.used > RESTING_AFTER or now - each.opened > SETTLED_AFTER
        # The share grows when an owner is left with nothing.
        if settled and holds[each.owner] > share_of(holds, capacity, [owner]):
            holds[each.owner] -= each.max_length
            yield each


def share_of(holds: Counter[str], capacity: int, asking: Iterable[str]) -> int:
    """What every owner is entitled to while these ask: equal parts, in tokens."""
    return capacity // len({holder for holder, tokens in holds.items() if tokens > 0}.union(asking))


def holdings(held: Iterable[Reservation]) -> Counter[str]:
    """Tokens by owner."""
    holds: Counter[str] = Counter()
    for each in held:
        holds[each.owner] += each.max_length
    return holds


class WaitingOwners:
    """Owners within their share who were refused for want of room a moment ago."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def refused(self, owner: str, now: float) -> None:
        self._since.pop(owner, None)
        self._since[owner] = now
        if len(self._since) > MAX_WAITING:
            del self._since[next(iter(self._since))]

    def admitted(self, owner: str) -> None:
        self._since.pop(owner, None)

    def owners(self, now: float) -> set[str]:
        self._since = {each: then for each, then in self._since.items() if now - then <= WANTED_FOR}
        return set(self._since)


class MessageRates:
    """How often each peer may say something that is no work of a session."""

    def __init__(self, clock: Callable[[], float], rate: float = RATE, burst: float = BURST) -> None:
        self._limit = RateLimit(rate, burst, clock)

    def wait(self, peer: str, message: wire.Message) -> float:
        """0: it may be answered. Otherwise the seconds to wait before the next one."""
        return self._limit.spend(peer, COSTS.get(type(message), 1.0))


class FloodGuard:
    """Who says so much that it is not even read: its connection ends, and it is not let in again for a while.

    ZeroMQ goes on receiving whether or not anybody reads, so what is refused politely would fill the memory. A server
    that is busy reads slowly; hence the small limit for what is of no use, however fast it was said.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        rate: float = FLOOD_RATE,
        burst: float = FLOOD_BURST,
        useless: float = USELESS_BURST,
    ) -> None:
        self._clock = clock
        self._limit = RateLimit(rate, burst, clock)
        self._useless = RateLimit(USELESS_RATE, useless, clock)
        self._banned: dict[str, float] = {}

    def heard(self, peer: str) -> bool:
        """A message has come; whether it should be read."""
        if not self.admits(peer):
            return False
        if self._limit.spend(peer):
            self._ban(peer)
            return False
        return True

    def useless(self, peer: str) -> None:
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
