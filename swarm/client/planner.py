"""Planner: the routes of a client's sessions, from what its directories say and what its sessions have seen: pure, with
injected time.

It knows which servers failed a moment ago and adds to `routing.planning.routes` what is the client's own: that a ban
is for one start of a server, that a session's own reservations are no obstacle to it, and in which order to give up
what would be best.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import msgspec

from routing import wire
from routing.planning.routes import Bans, NoRoute, RouteQuery, no_latency, plan
from swarm.errors import BadRequest, Overloaded, SwarmError, Unavailable

Route = tuple[wire.Hop, ...]


@dataclass(frozen=True)
class RouteRequest:
    """Needs of one session at one moment.

    Attributes:
        session: its id, which decides between routes that are equally good.
        max_length: tokens of KV cache that it reserves on every hop.
        reserved: servers on which it holds that reservation already.
        avoid: servers that it does not want.
        keep: hops that have parts of it cached, to stay where that can be.
        latency: round trip in seconds between two peers by public key; None is the client.
        ends: the only servers that may hold the first and the last block; None: any.
        relayed: servers that are known to be reached through a router.
    """

    session: str
    model: str
    max_length: int
    reserved: frozenset[str] = frozenset()
    avoid: frozenset[str] = frozenset()
    keep: Route = ()
    latency: Callable[[str | None, str], float] = no_latency
    ends: frozenset[str] | None = None
    relayed: frozenset[str] = frozenset()


@dataclass
class Planner:
    """Planner: finds routes and remembers failures, for all sessions of a client."""

    _bans: Bans = field(default_factory=Bans)
    _instances: dict[str, str] = field(default_factory=dict)  # the start of a server that its ban is for

    def report_failure(self, server: str, instance: str, now: float) -> None:
        """Avoid the server for a while, as long as it is not started anew."""
        self._bans.ban(server, now)
        self._instances[server] = instance

    def report_success(self, server: str) -> None:
        """Forget the failures of the server."""
        self._bans.clear(server)
        self._instances.pop(server, None)

    def banned(self, servers: Iterable[wire.ServerInfo], now: float) -> dict[str, float]:
        """Servers to avoid, and until when. A server that was started anew since it failed is none of them."""
        for server in servers:
            if self._instances.get(server.key, server.instance) != server.instance:
                self.report_success(server.key)
        return self._bans.active(now)

    def route(self, request: RouteRequest, servers: Iterable[wire.ServerInfo], now: float) -> Route:
        """The best route for the session: with the hops that have parts of it cached rather than without, and by a
        server that failed a moment ago rather than not at all.

        Args:
            servers: those of the model, as the directories say.

        Raises:
            Overloaded: every server of some blocks is full.
            BadRequest: the session is longer than any server of some blocks can hold.
            Unavailable: some blocks have no server.
        """
        known = [_with_own_room(server, request) for server in servers]
        bans = self.banned(known, now)
        blocks = known[0].blocks if known else 1
        query = RouteQuery(
            request.model,
            request.max_length,
            request.latency,
            avoid=request.avoid,
            now=now,
            seed=zlib.crc32(request.session.encode()),
            ends=request.ends,
            relayed=request.relayed,
        )
        refusal: NoRoute | None = None
        for banned, kept in itertools.product((bans, {}), dict.fromkeys((request.keep, ()))):
            try:
                return plan(known, blocks, replace(query, bans=banned), kept)
            except NoRoute as error:
                refusal = error
        assert refusal is not None
        raise error_of(refusal)


def _with_own_room(server: wire.ServerInfo, request: RouteRequest) -> wire.ServerInfo:
    if server.key not in request.reserved:
        return server
    return msgspec.structs.replace(
        server, load=msgspec.structs.replace(server.load, kv_free=server.load.kv_free + request.max_length)
    )


def error_of(refusal: NoRoute) -> SwarmError:
    """The error that a user is told where no route was found."""
    match refusal.code:
        case "full":
            return Overloaded(str(refusal), refusal.retry_after or 1.0)
        case "too_long":
            return BadRequest(str(refusal))
    return Unavailable(str(refusal), refusal.missing)
