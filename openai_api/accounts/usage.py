"""Usage: what was used, by whom and of which server; counted in memory, added up by day. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from routing import wire


class Asked(NamedTuple):
    """Asked: whose use it is. Person 0, key '': without an account."""

    day: str
    person: int
    key: str
    model: str


class Served(NamedTuple):
    """Served: whose work it is; `server`; a public key."""

    day: str
    server: str
    model: str


@dataclass
class Tally:
    """Tally of use, in memory, until it is written down.

    Attributes:
        used: requests, tokens of prompts, generated tokens.
        served: tokens times blocks.
        names: of servers, by key.
        last_used: by key of an account, seconds since the epoch.
    """

    used: dict[Asked, tuple[int, int, int]] = field(default_factory=dict)
    served: dict[Served, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    last_used: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.used or self.served or self.last_used)

    def add(self, asked: Asked, requests: int, prompt: int, generated: int) -> None:
        before = self.used.get(asked, (0, 0, 0))
        self.used[asked] = (before[0] + requests, before[1] + prompt, before[2] + generated)

    def add_served(self, day: str, model: str, work: Mapping[str, int], names: Mapping[str, str]) -> None:
        for server, amount in work.items():
            served = Served(day, server, model)
            self.served[served] = self.served.get(served, 0) + amount
            self.names[server] = plain(names.get(server, "")) or self.names.get(server, "")

    def merge(self, other: Tally) -> None:
        """Add what another tally holds."""
        for asked, counts in other.used.items():
            self.add(asked, *counts)
        for served, amount in other.served.items():
            self.add_served(served.day, served.model, {served.server: amount}, other.names)
        for key, date in other.last_used.items():
            self.last_used[key] = max(date, self.last_used.get(key, 0.0))

    def tokens(self, day: str, key: str) -> int:
        """Tokens of a key on a day."""
        return sum(
            prompt + generated
            for asked, (_, prompt, generated) in self.used.items()
            if (asked.day, asked.key) == (day, key)
        )


@dataclass
class WorkRecord:
    """Work record: what the swarm has computed for one request.

    Attributes:
        generated: tokens, those that end an answer included.
        by_server: tokens times blocks, by the server's key.
    """

    generated: int = 0
    by_server: dict[str, int] = field(default_factory=dict)
    begun: bool = False

    def share(self) -> Share:
        return Share(self)

    def computed(self, hops: Iterable[wire.Hop], tokens: int) -> None:
        """All the hops have computed so many tokens."""
        self.begun = True
        for hop in hops:
            self.add(hop.peer, (hop.end - hop.start) * tokens)

    def add(self, server: str, amount: int) -> None:
        if amount > 0:
            self.by_server[server] = self.by_server.get(server, 0) + amount


class Share:
    """The work for one choice, followed along its route.

    A token at position p tells that every hop of the route has computed the p tokens before it. A hop that came with a
    change of the route had none of them in its cache, so it has computed them all; a hop that stayed only what is new
    since the last token. What a hop computed of which no token came (because it or another was lost just then) cannot
    be known, and counts for no server.
    """

    def __init__(self, work: WorkRecord) -> None:
        self._work = work
        self._before: tuple[wire.Hop, ...] = ()
        self._route: tuple[wire.Hop, ...] = ()
        self._position = 0  # tokens that the hops of `_before` have computed

    def routed(self, hops: Iterable[wire.Hop]) -> None:
        self._route = tuple(hops)

    def token(self, position: int) -> None:
        """The next token has come, and stands at `position` of the sequence."""
        self._work.begun = True
        self._work.generated += 1
        for hop in self._route:
            known = sum(_overlap(hop, other) for other in self._before if other.peer == hop.peer)
            blocks = hop.end - hop.start
            self._work.add(hop.peer, known * (position - self._position) + (blocks - known) * position)
        self._before, self._position = self._route, position


def plain(text: str) -> str:
    """What every database takes: names come from other machines, and PostgreSQL refuses some characters."""
    return "".join(each for each in text if each.isprintable())


def _overlap(one: wire.Hop, other: wire.Hop) -> int:
    return max(0, min(one.end, other.end) - max(one.start, other.start))
