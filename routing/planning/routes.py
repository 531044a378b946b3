"""Routes: which servers a session should use; pure functions over what the directory says.

The plan is the one of Petals' sequence manager (https://arxiv.org/abs/2209.01188, section 3.3): a shortest path whose
edges cost half a round trip and the overhead of a hop, and whose blocks cost what the server needs to compute them.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from routing import wire
from routing.planning.shortest_path import Reach, shortest
from routing.relay.rules import is_relayed

OVERHEAD = 0.001  # s that a hop adds to a token, whatever it computes
RELAYED = 0.05  # s; a way through a router is the bandwidth of others, so a direct one may take that much longer
LOAD_PER_SESSION = 0.25  # sessions are batched, so one more slows a server down by less than its share
BUSY_RETRY = 1.0  # s, hint
LOADING_RETRY = 2.0  # s, hint
BAN = 15.0  # s for the first failure; doubles with each
LONGEST_BAN = 3600.0  # s

Spans = tuple[tuple[int, int], ...]


class NoRoute(Exception):
    """No usable servers cover the model. The text is for people.

    Attributes:
        code: `unserved`, `conflict` (only by servers whose files differ), `not_ready`, `too_long` (for any server that
            has the blocks), `full` or `failed` (those that are left failed a moment ago).
        missing: the spans, as (start, end), that the reason is about.
        retry_after: seconds after which to try again; None: waiting alone does not help.
    """

    def __init__(self, code: str, reason: str, missing: Spans, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.missing = missing
        self.retry_after = retry_after


def no_latency(one: str | None, other: str) -> float:
    """For a swarm of which nothing has been measured."""
    return 0.0


@dataclass(frozen=True)
class RouteQuery:
    """Route query: the needs of a session.

    Attributes:
        max_length: tokens of KV cache that it reserves on every hop.
        latency: round trip in seconds between two peers by public key; None is the client.
        bans: public key of a server and the time until which it is not to be used; see `Bans.active`.
        avoid: servers not to be used for this session.
        now: the clock of `bans`.
        ends: the only servers that may hold the first and the last block, where tokens are seen; None: any.
        seed: which of several equal routes is taken, so that sessions spread; None: always the same.
        relayed: servers that are known to be reached through a router; those that can be dialled no other way count as
            such by themselves.
    """

    model: str
    max_length: int = 0
    latency: Callable[[str | None, str], float] = no_latency
    bans: Mapping[str, float] = field(default_factory=dict)
    avoid: frozenset[str] = frozenset()
    now: float = 0.0
    seed: int | None = None
    ends: frozenset[str] | None = None
    relayed: frozenset[str] = frozenset()


def coverage(servers: Iterable[wire.ServerInfo], blocks: int) -> list[int]:
    """`[blocks]` how many ready servers of a model hold each block."""
    changes = [0] * (blocks + 1)
    for server in servers:
        if server.state == "ready" and server.start < blocks:
            changes[server.start] += 1
            changes[min(server.end, blocks)] -= 1
    return list(itertools.accumulate(changes[:blocks]))


def missing(servers: Iterable[wire.ServerInfo], blocks: int) -> Spans:
    """The spans, as (start, end), that no ready server holds."""
    return _gaps(coverage(servers, blocks))


def plan(
    servers: Iterable[wire.ServerInfo], blocks: int, query: RouteQuery, kept: Sequence[wire.Hop] = ()
) -> tuple[wire.Hop, ...]:
    """The cheapest route over `0:blocks`. A hop may be a part of its server's span; no server comes twice.

    Args:
        servers: of any models and states.
        kept: hops of an earlier route, in order, that stay as they are, with what they have cached; the gaps between
            them are filled.

    Raises:
        NoRoute: some block has no server that can be used.
    """
    known = list(servers)
    route: list[wire.Hop] = []
    at, before = 0, None
    for hop in (*kept, None):
        end = hop.start if hop else blocks
        if at < end:
            used = query.avoid | {other.peer for other in (*kept, *route)}
            usable = _usable(known, blocks, replace(query, avoid=frozenset(used)), (at, end))
            route += _cheapest(usable, (at, end), query, before, hop.peer if hop else None)
        if hop:
            route.append(hop)
            at, before = hop.end, hop.peer
    return tuple(route)


def _cheapest(
    usable: list[wire.ServerInfo], span: tuple[int, int], query: RouteQuery, before: str | None, after: str | None
) -> tuple[wire.Hop, ...]:
    """The cheapest hops over `span`, between two peers; None is the client."""
    usable.sort(key=lambda server: server.key)
    if query.seed is not None:
        random.Random(query.seed).shuffle(usable)
    speeds = [server.throughput for server in usable if server.throughput > 0]
    slowest = min(speeds, default=1.0)  # also for a server that has not measured itself
    reaches = [
        Reach(max(s.start, span[0]), min(s.end, span[1]), _nanoseconds(_load(s) / max(s.throughput, slowest)))
        for s in usable
    ]
    detours = [RELAYED if s.key in query.relayed or all(map(is_relayed, s.addresses)) else 0.0 for s in usable]

    def edge(one: int | None, other: int | None) -> int:
        if other is None:
            assert one is not None
            if after is None:  # the tail answers the client, along the connection that the client has made
                return _nanoseconds(query.latency(None, usable[one].key) / 2 + detours[one])
            return _nanoseconds(query.latency(usable[one].key, after) / 2 + OVERHEAD)
        round_trip = query.latency(before if one is None else usable[one].key, usable[other].key)
        return _nanoseconds(round_trip / 2 + OVERHEAD + detours[other])

    legs = shortest(reaches, *span, edge, _nanoseconds(OVERHEAD))
    assert legs is not None, "every block is covered"
    return tuple(wire.Hop(usable[leg.which].key, usable[leg.which].addresses, leg.start, leg.end) for leg in legs)


def _load(server: wire.ServerInfo) -> float:
    return 1 + LOAD_PER_SESSION * server.load.sessions


def _nanoseconds(seconds: float) -> int:
    return round(min(max(seconds, 0.0), 1e6) * 1e9)


def _usable(
    servers: Iterable[wire.ServerInfo], blocks: int, query: RouteQuery, span: tuple[int, int]
) -> list[wire.ServerInfo]:
    """The servers that the session may use for blocks of `span`.

    Raises:
        NoRoute: for the first reason that leaves blocks without one.
    """
    known = [
        s
        for s in servers
        if (s.model, s.blocks, s.protocol) == (query.model, blocks, "ring")
        and s.end <= blocks
        and s.start < span[1]
        and span[0] < s.end
    ]
    if query.ends is not None and not (gaps := _uncovered(known, span)):
        known = [s if s.key in query.ends else _inner(s) for s in known]
        known = [s for s in known if s.start < s.end]
        if gaps := _uncovered(known, span):
            text = f"no server of your own has {_blocks(gaps)} of {query.model!r}"
            raise NoRoute("private", f"{text}: start one that does, or do not ask for privacy", gaps)
    gaps = _uncovered(known, span)
    if gaps == ((0, blocks),):
        raise NoRoute("unserved", f"no server of the swarm has {query.model!r}", gaps)
    if gaps:
        raise NoRoute("unserved", f"no server has {_blocks(gaps)} of {query.model!r}: start one that does", gaps)

    ready = [s for s in known if s.state == "ready"]
    if gaps := _uncovered(ready, span):
        text = f"the servers of {_blocks(gaps)} of {query.model!r} are loading or leaving: try again in a moment"
        raise NoRoute("not_ready", text, gaps, LOADING_RETRY)

    large = [s for s in ready if s.kv_tokens >= query.max_length]
    if gaps := _uncovered(large, span):
        text = f"{query.max_length} tokens are more than the servers of {_blocks(gaps)} of {query.model!r} can hold"
        raise NoRoute("too_long", f"{text}: ask for fewer, or start one with more --kv-tokens", gaps)

    roomy = [s for s in large if s.load.kv_free >= query.max_length]
    if gaps := _uncovered(roomy, span):
        text = f"the servers of {_blocks(gaps)} of {query.model!r} have no room for {query.max_length} tokens now"
        raise NoRoute("full", f"{text}: try again in a moment", gaps, BUSY_RETRY)

    trusted = [s for s in roomy if s.key not in query.avoid and query.bans.get(s.key, -math.inf) <= query.now]
    if gaps := _uncovered(trusted, span):
        ends = [query.bans[s.key] for s in roomy if query.bans.get(s.key, -math.inf) > query.now]
        wait = max(min(ends, default=query.now + BUSY_RETRY) - query.now, 0.0)
        text = f"the only servers of {_blocks(gaps)} of {query.model!r} failed a moment ago"
        raise NoRoute("failed", f"{text}: try again in {max(math.ceil(wait), 1)} s", gaps, wait)
    return trusted


def _inner(server: wire.ServerInfo) -> wire.ServerInfo:
    """Without the first and the last block of the model."""
    return msgspec.structs.replace(server, start=max(server.start, 1), end=min(server.end, server.blocks - 1))


def _uncovered(servers: Sequence[wire.ServerInfo], span: tuple[int, int]) -> Spans:
    first, last = span
    held = [0] * (last - first + 1)
    for server in servers:
        held[max(server.start, first) - first] += 1
        held[min(server.end, last) - first] -= 1
    return tuple((start + first, end + first) for start, end in _gaps(list(itertools.accumulate(held[:-1]))))


def _gaps(replicas: Sequence[int]) -> Spans:
    spans = []
    for covered, run in itertools.groupby(range(len(replicas)), key=lambda block: replicas[block] > 0):
        if not covered:
            here = list(run)
            spans.append((here[0], here[-1] + 1))
    return tuple(spans)


def _blocks(spans: Spans) -> str:
    return "blocks " + " and ".join(f"{start}:{end}" for start, end in spans)


class Bans:
    """Servers that failed, and until when they are left alone: `BAN` * 2^n seconds, forgotten on success."""

    def __init__(self) -> None:
        self._bans: dict[str, tuple[int, float]] = {}  # failures in a row, end

    def ban(self, key: str, now: float) -> float:
        """A failure. Returns the end of the ban. Several sessions that fail together count once."""
        # One that has long been back is no repeated offender; this also keeps the table small.
        self._bans = {k: (n, end) for k, (n, end) in self._bans.items() if now < end + LONGEST_BAN}
        failures, until = self._bans.get(key, (0, now))
        if now >= until:
            until = now + min(BAN * 2 ** min(failures, 10), LONGEST_BAN)
            self._bans[key] = failures + 1, until
        return until

    def clear(self, key: str) -> None:
        """A success."""
        self._bans.pop(key, None)

    def active(self, now: float) -> dict[str, float]:
        """Who is banned now, and until when."""
        return {key: until for key, (_, until) in self._bans.items() if now < until}
