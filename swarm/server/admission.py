"""Admission: which sessions get room in a server's KV cache, and at whose cost. Pure, with injected time.

A gateway that is alone with a server may use all of its room; a member that holds room which others want must let them
have their share. The share of an owner is the capacity divided by the number of owners, the one that asks included. An
owner that would stay within its share gets in at the cost of owners that are over theirs: of those, sessions give way
that were not used for a moment or that have been there for long. While an owner within its share waits, no owner over
its share gets more. A client whose session has to give way can replay it, here or elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol, TypeVar

from backends import Span
from routing import wire
from routing.addresses import is_dialable

MAX_SESSIONS = 256  # of one owner
IDLE_AFTER = 60.0  # s without a message until a session gives way to any other
RESTING_AFTER = 15.0  # s without a message until one of an owner that is over its share gives way
SETTLED_AFTER = 60.0  # s since it was opened until one of an owner that is over its share gives way even while it works
WANTED_FOR = 3.0  # s for which a refusal for want of room is remembered; clients ask again in half a second
MAX_WAITING = 1000  # owners of which that is remembered
BUSY_RETRY = 1.0  # s, the hint given with a refusal for want of room


class SessionRefused(Exception):
    """A session that is not taken."""

    def __init__(self, code: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.retry_after = retry_after


class Reservation(Protocol):
    """Reservation of room by a session.

    Attributes:
        last_active: when its client was last heard.
        opened: when it came.
        disconnected_at: when its client was found to be gone; None: it is there.
    """

    id: str
    owner: str
    max_length: int
    last_active: float
    opened: float
    disconnected_at: float | None


Reserved = TypeVar("Reserved", bound=Reservation)


def evictable(
    held: Iterable[Reserved], capacity: int, owner: str, need: int, now: float, keep: str = ""
) -> Iterator[Reserved]:
    """Sessions that may be closed to make room for `need` more tokens of `owner`, in the order to close them.

    First those whose client has left, then those that have not been used for long, then those of owners who hold more
    than their share, if `owner` will hold no more than its own.

    Args:
        keep: a session that stays in any case.
    """
    reserved = sorted(held, key=lambda each: each.last_active)
    holds = reserved_by_owner(reserved)
    reserved = [each for each in reserved if each.id != keep]
    unused = [each for each in reserved if each.disconnected_at is not None or now - each.last_active > IDLE_AFTER]
    for each in sorted(unused, key=lambda each: each.disconnected_at is None):
        holds[each.owner] -= each.max_length
        yield each
    if holds[owner] + need > fair_share(holds, capacity, [owner]):
        return
    for each in reserved:
        if each in unused or each.owner == owner:
            continue
        settled = now - each.last_active > RESTING_AFTER or now - each.opened > SETTLED_AFTER
        # The share grows when an owner is left with nothing.
        if settled and holds[each.owner] > fair_share(holds, capacity, [owner]):
            holds[each.owner] -= each.max_length
            yield each


def fair_share(holds: Counter[str], capacity: int, asking: Iterable[str]) -> int:
    """What every owner is entitled to while these ask: equal parts, in tokens."""
    return capacity // len({holder for holder, tokens in holds.items() if tokens > 0}.union(asking))


def reserved_by_owner(held: Iterable[Reservation]) -> Counter[str]:
    """Tokens by owner."""
    holds: Counter[str] = Counter()
    for each in held:
        holds[each.owner] += each.max_length
    return holds


class WaitingOwners:
    """Waiting owners: those within their share who were refused for want of room a moment ago."""

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


class Admission:
    """Admission to one server: what it serves, and how much room it has.

    Args:
        key: the server's own public key.
        model, span, blocks: what it serves: the model's name, its blocks, and how many the whole model has.
        capacity: tokens that its KV cache may hold in all sessions together.
        context_length: the longest sequence of the model; 0: unbounded.
    """

    def __init__(self, key: str, model: str, span: Span, blocks: int, capacity: int, context_length: int) -> None:
        self.capacity = capacity
        self._key = key
        self._model = model
        self._span = span
        self._blocks = blocks
        self._context_length = context_length
        self._waiting = WaitingOwners()

    def validate(self, message: wire.Open) -> None:
        """Raises: SessionRefused: the session is not one for this server."""
        if message.model != self._model:
            raise SessionRefused(
                wire.RefusalCode.UNKNOWN_MODEL, f"this server serves {self._model!r}, not {message.model!r}"
            )
        if message.hop >= len(message.route) or message.route[message.hop].peer != self._key:
            raise SessionRefused(wire.RefusalCode.BAD_ROUTE, "the route does not name this server at that place")
        span = span_of(message)
        if not self._span.start <= span.start < span.end <= self._span.end:
            raise SessionRefused(wire.RefusalCode.BAD_ROUTE, f"this server serves blocks {self._span}, not {span}")
        if sum(hop.peer == self._key for hop in message.route) > 1:
            raise SessionRefused(wire.RefusalCode.BAD_ROUTE, "the route comes by this server twice")
        at = 0
        for hop in message.route:
            if hop.start != at or hop.end <= hop.start:
                raise SessionRefused(wire.RefusalCode.BAD_ROUTE, f"the route does not go on at block {at}")
            at = hop.end
            if not all(map(is_dialable, hop.addresses)):
                raise SessionRefused(
                    wire.RefusalCode.BAD_ROUTE, f"the hop {hop.start}:{hop.end} has an address that cannot be dialled"
                )
        if at != self._blocks:
            raise SessionRefused(wire.RefusalCode.BAD_ROUTE, f"the route ends at block {at} of {self._blocks}")
        if self._context_length and message.max_length > self._context_length:
            raise SessionRefused(
                wire.RefusalCode.TOO_LONG,
                f"{message.max_length} tokens are more than the model's context of {self._context_length}",
            )
        if message.max_length > self.capacity:
            raise SessionRefused(
                wire.RefusalCode.TOO_LONG,
                f"{message.max_length} tokens are more than this server's whole KV cache of {self.capacity}",
            )
        if message.generation is not None and message.generation.end > message.max_length:
            raise SessionRefused(wire.RefusalCode.TOO_LONG, "the generation would end beyond the session's max_length")

    def free(self, sessions: Iterable[Reservation]) -> int:
        """Tokens that no session has reserved."""
        return self.capacity - sum(session.max_length for session in sessions)

    def available_tokens(self, sessions: Collection[Reservation], now: float) -> int:
        """Tokens that a newcomer could have: what is free, and what would give way to it."""
        evicted = evictable(sessions, self.capacity, "", 0, now)
        return self.free(sessions) + sum(session.max_length for session in evicted)

    def make_room(self, sessions: Collection[Reserved], need: int, owner: str, now: float, keep: str) -> list[Reserved]:
        """The sessions to close so that `owner` can have `need` tokens; none gives way where that is not enough.

        Args:
            keep: the session that asks, where it is here already.

        Raises:
            SessionRefused: the owner has too many sessions, or there is no room for it.
        """
        held = sum(session.owner == owner and session.id != keep for session in sessions)
        if held >= MAX_SESSIONS:
            text = f"you have {held} sessions here, and {MAX_SESSIONS} is the limit: close some"
            raise SessionRefused(wire.RefusalCode.TOO_MANY, text, BUSY_RETRY)
        reserved, waiting = reserved_by_owner(sessions), self._waiting.owners(now) - {owner}
        share = fair_share(reserved, self.capacity, {owner, *waiting})
        within = reserved[owner] + need <= share
        if need > 0 and waiting and not within:
            text = f"others wait for room, and with {need} more tokens you would hold more than your share of {share}"
            raise SessionRefused(wire.RefusalCode.TOO_MANY, text, BUSY_RETRY)
        evicted: list[Reserved] = []
        room = self.free(sessions)
        for session in evictable(sessions, self.capacity, owner, need, now, keep):
            if room >= need:
                break
            evicted.append(session)
            room += session.max_length
        if room < need:
            if within:
                self._waiting.refused(owner, now)
            text = (
                f"no room for {need} more tokens: {self.capacity - self.free(sessions)} of {self.capacity} are "
                f"reserved by {len(sessions)} sessions"
            )
            raise SessionRefused(wire.RefusalCode.BUSY, text, BUSY_RETRY)
        self._waiting.admitted(owner)
        return evicted


def span_of(message: wire.Open) -> Span:
    """The blocks that the message's hop is to compute."""
    hop = message.route[message.hop]
    return Span(hop.start, hop.end)
