"""The directory's state and its rules: who is a member, who serves what, and until when. No sockets, no clock.

Two times come from outside: `now` is a clock that never jumps, for leases; `date` is seconds since the epoch, for what
outlives the process. Whatever changes the view is returned as events, and the view is nothing but their replay.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from dataclasses import dataclass

import msgspec
from zmq.utils import z85

from routing import wire
from routing.addresses import is_dialable
from routing.directory.roster import Roster
from routing.planning.assign import choose_span, throughputs
from routing.relay.rules import is_relayed
from routing.security import short_id
from routing.view import View, apply

MAX_MEMBERS = 10_000
MAX_SITES = 16  # directories
MAX_TOKENS = 10_000  # that are remembered, revoked and expired ones included
MAX_SERVERS = 10_000
MAX_ROUTERS = 64
MAX_BLOCKS = 2048  # of a model
MAX_SERVER = 256 << 10  # bytes of one announcement, so that every message about it fits a frame
MAX_TTL = 300.0  # s

Events = tuple[wire.Event, ...]


class RequestRefused(Exception):
    """A request that is not carried out.

    Attributes:
        code: a code of `wire.RefusalCode`.
        retry_after: seconds; None: the same request will be refused again.
    """

    def __init__(self, code: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.retry_after = retry_after


@dataclass
class _Lease:
    ttl: float
    until: float


@dataclass(frozen=True)
class _Hold:
    """A span that a server was told to take and has not announced yet."""

    server: wire.ServerInfo
    until: float


class Registry:
    """Registry: the state of a directory and its rules, without I/O.

    Args:
        roster: members, directories, join tokens and expulsions, as they were saved.

    Attributes:
        roster: replaced whole when it changes, so that any thread may read it.
    """

    def __init__(
        self,
        roster: Roster | None = None,
        *,
        max_members: int = MAX_MEMBERS,
        max_servers: int = MAX_SERVERS,
    ) -> None:
        self.roster = roster or Roster()
        self.view = View(self.roster.members, {}, frozenset(self.roster.expelled), self.roster.sites)
        self._max_members = max_members
        self._max_servers = max_servers
        self._leases: dict[str, _Lease] = {}
        self._next_end: float | None = None  # no lease ends before; extended ones make it out of date
        self._holds: dict[str, _Hold] = {}
        self._left: OrderedDict[str, wire.ServerInfo] = OrderedDict()  # what servers that are gone served

    # --- who belongs to the swarm ------------------------------------------------------------------------------------

    def is_member(self, key: str) -> bool:
        return key in self.roster.members

    def is_directory(self, key: str) -> bool:
        return key in self.roster.sites

    def admits(self, key: str, date: float) -> bool:
        """Whether the directory lets `key` connect. May be called from any thread."""
        roster = self.roster
        return key in roster.members or key in roster.sites or roster.may_enrol(key, date)

    def enrol(
        self, by: str, key: str, name: str, date: float, role: str = "", addresses: tuple[str, ...] = ()
    ) -> Events:
        """Let `key` in, on the word of the enrolment key `by`. A member stays as it is.

        Raises:
            RequestRefused: the enrolment secret is not good, the key or name is unusable, the swarm is full, or the key
                was expelled.
        """
        if key in self.roster.expelled:
            raise RequestRefused(wire.RefusalCode.EXPELLED, "it was expelled from the swarm")
        if not self.roster.may_enrol(by, date):
            raise RequestRefused(
                wire.RefusalCode.NOT_A_MEMBER, "this join token enrols no peer (any more): ask for a new one"
            )
        if not _is_key(key) or key in self.roster.enrolments:
            raise RequestRefused(wire.RefusalCode.MALFORMED, "this is not a public key of a peer")
        if not (name + role).isprintable():
            raise RequestRefused(wire.RefusalCode.MALFORMED, "the name holds characters that cannot be printed")
        enrolment = self.roster.enrolments[by]
        if (role == "directory") != (enrolment.role == "directory"):
            raise RequestRefused(
                wire.RefusalCode.NOT_YOURS,
                "this join token is for another directory: get one for peers with 'swarm token create'"
                if enrolment.role == "directory"
                else "this join token is for peers: get one for a directory with 'swarm token create --directory'",
            )
        # The holder of a token for peers may enrol any key: that must not keep a directory out.
        if key in self.roster.sites or (key in self.roster.members and role != "directory"):
            return ()
        token = short_id(by)
        if role == "directory":
            if len(self.roster.sites) >= MAX_SITES:
                raise RequestRefused(
                    wire.RefusalCode.FULL, f"the swarm has {MAX_SITES} directories, which is its limit"
                )
            return self.locate(wire.DirectoryInfo(key, name, addresses, date, token))
        if len(self.roster.members) >= self._max_members:
            raise RequestRefused(
                wire.RefusalCode.FULL, f"the swarm has {self._max_members} members, which is its limit"
            )
        return self.merge(Roster({key: wire.Member(key, name, date, role, token)}))

    def locate(self, site: wire.DirectoryInfo) -> Events:
        """A directory says where it is.

        Raises:
            RequestRefused: it could not be dialled there.
        """
        if not site.addresses or not all(map(is_dialable, site.addresses)) or not site.name.isprintable():
            raise RequestRefused(
                wire.RefusalCode.MALFORMED, "a directory needs a name and addresses that others could dial"
            )
        return self.merge(Roster(sites={site.key: site}))

    def issue(self, enrolment: wire.TokenRecord) -> Events:
        """A join token is good from now on.

        Raises:
            RequestRefused: it is known already, no key, or one too many.
        """
        if not _is_key(enrolment.key) or enrolment.key in {*self.roster.enrolments, *self.roster.members}:
            raise RequestRefused(wire.RefusalCode.MALFORMED, "this is not the key of a new join token")
        if len(self.roster.enrolments) >= MAX_TOKENS:
            raise RequestRefused(
                wire.RefusalCode.FULL, f"the swarm has had {MAX_TOKENS} join tokens, which is its limit"
            )
        return self.merge(Roster(enrolments={enrolment.key: enrolment}))

    def revoke(self, key: str, date: float) -> Events:
        """A join token enrols no peer any longer; who came with it stays.

        Raises:
            RequestRefused: there is no such token.
        """
        if key not in self.roster.enrolments:
            raise RequestRefused(wire.RefusalCode.UNKNOWN, "there is no such join token")
        revoked = msgspec.structs.replace(self.roster.enrolments[key], revoked=date)
        return self.merge(Roster(enrolments={key: revoked}))

    def expel(self, key: str, date: float) -> Events:
        """Take the place of a member or a directory away, for good.

        Raises:
            RequestRefused: it is neither.
        """
        known = self.roster.members.get(key) or self.roster.sites.get(key)
        if key in self.roster.expelled:
            return ()
        if known is None:
            raise RequestRefused(wire.RefusalCode.UNKNOWN, "there is no such peer")
        role = known.role if isinstance(known, wire.Member) else "directory"
        return self.merge(Roster(expelled={key: wire.Expulsion(key, date, known.name, role, known.token)}))

    def merge(self, other: Roster) -> Events:
        """Take in what another directory says, or what was decided here."""
        before, self.roster = self.roster, self.roster.merge(other)
        if self.roster is before:
            return ()
        new = self.roster.since(before)
        events: list[wire.Event] = []
        for key in new.expelled:
            self._holds.pop(key, None)
            events += self._remove(key, "it was expelled")
            self._left.pop(key, None)
            events += self._happen(wire.MemberExpelled(key))
        events += (event for member in new.members.values() for event in self._happen(wire.MemberJoined(member)))
        events += (event for site in new.sites.values() for event in self._happen(wire.DirectoryListed(site)))
        return tuple(events)

    # --- servers -----------------------------------------------------------------------------------------------------

    def heard(self, peer: str, now: float) -> None:
        """Any message of a peer extends its lease."""
        lease = self._leases.get(peer)
        if lease is not None:
            lease.until = max(lease.until, now + lease.ttl)

    def announce(self, peer: str, server: wire.ServerInfo, ttl: float, now: float) -> Events:
        """`peer` serves what `server` says, for `ttl` seconds (at most `MAX_TTL`). No event if that is known.

        Raises:
            RequestRefused: it may not.
        """
        known = self.view.servers.get(peer)
        if server != known or not self.is_member(peer):
            self._check(peer, server, known, now)
            if not server.start < server.end <= server.blocks:
                span = f"{server.start}:{server.end}"
                raise RequestRefused(
                    wire.RefusalCode.MALFORMED, f"the blocks {span} are not within {server.model!r}, 0:{server.blocks}"
                )
        self._holds.pop(peer, None)
        self._grant(peer, min(ttl, MAX_TTL), now)
        return () if server == known else self._happen(wire.ServerUpdated(server))

    def announce_router(self, peer: str, router: wire.RouterInfo, ttl: float, now: float) -> Events:
        """`peer` relays to peers that cannot be dialled, for `ttl` seconds. No event if that is known.

        Raises:
            RequestRefused: it may not.
        """
        if not self.is_member(peer):
            raise RequestRefused(wire.RefusalCode.NOT_A_MEMBER, "this peer has not enrolled")
        if router.key != peer or peer in self.view.servers:
            raise RequestRefused(
                wire.RefusalCode.NOT_YOURS, "a router may only speak for its own key, and is no server"
            )
        if peer not in self.view.routers and len(self.view.routers) >= MAX_ROUTERS:
            raise RequestRefused(wire.RefusalCode.FULL, f"the swarm has {MAX_ROUTERS} routers, which is its limit")
        if not router.name.isprintable():
            raise RequestRefused(wire.RefusalCode.MALFORMED, "the name holds characters that cannot be printed")
        for address in router.addresses:
            if is_relayed(address) or not is_dialable(address):
                raise RequestRefused(wire.RefusalCode.MALFORMED, f"{address!r} is no address that others could dial")
        self._grant(peer, min(ttl, MAX_TTL), now)
        return () if router == self.view.routers.get(peer) else self._happen(wire.RouterUpdated(router))

    def withdraw(self, peer: str) -> Events:
        """The server or router of `peer` leaves."""
        self._holds.pop(peer, None)
        return self._remove(peer, "it left")

    def place(self, peer: str, server: wire.ServerInfo, capacity: int, ttl: float, now: float) -> tuple[int, int]:
        """The span of at most `capacity` blocks that `peer` should serve; held for `ttl` seconds or until it announces.

        A server that was here before gets its last span again where that is about as good as the best one.

        Held spans and servers that are still loading count as served, so that two servers that start together do not
        take the same one.

        Raises:
            RequestRefused: what `server` says of the model cannot be announced.
        """
        self._check(peer, server, self.view.servers.get(peer), now)
        last = self.view.servers.get(peer) or self._left.get(peer)
        same = last is not None and (last.model, last.blocks) == (server.model, server.blocks)
        start, end = choose_span(
            self._throughputs(server, now), capacity, (last.start, last.end) if same and last is not None else None
        )
        held = msgspec.structs.replace(server, start=start, end=end, state="joining")
        self._holds[peer] = _Hold(held, now + min(ttl, MAX_TTL))
        return start, end

    def next_expiry(self) -> float | None:
        """No lease runs out before; call `expire` then. None: nothing can run out."""
        return self._next_end

    def expire(self, now: float) -> Events:
        """End the leases that ran out."""
        if self._next_end is None or now < self._next_end:
            return ()
        ended = [key for key, lease in self._leases.items() if lease.until <= now]
        events = [event for key in ended for event in self._remove(key, "its lease ran out")]
        self._next_end = min((lease.until for lease in self._leases.values()), default=None)
        return tuple(events)

    # --- rules -------------------------------------------------------------------------------------------------------

    def _check(self, peer: str, server: wire.ServerInfo, known: wire.ServerInfo | None, now: float) -> None:
        if not self.is_member(peer):
            raise RequestRefused(wire.RefusalCode.NOT_A_MEMBER, "this peer has not enrolled")
        if server.key != peer:
            raise RequestRefused(wire.RefusalCode.NOT_YOURS, "a server may only speak for its own key")
        if peer in self.view.routers:
            raise RequestRefused(wire.RefusalCode.NOT_YOURS, "this peer is a router: a server needs a key of its own")
        if not math.isfinite(server.throughput):
            raise RequestRefused(wire.RefusalCode.MALFORMED, "the throughput must be a finite number")
        if known is not None and _same_but_for_load(known, server):
            return
        if known is None and len(self.view.servers) >= self._max_servers:
            raise RequestRefused(
                wire.RefusalCode.FULL, f"the swarm has {self._max_servers} servers, which is its limit"
            )
        if server.blocks > MAX_BLOCKS:
            raise RequestRefused(
                wire.RefusalCode.MALFORMED, f"a model of {server.blocks} blocks is over the limit of {MAX_BLOCKS}"
            )
        if not server.model or not (server.model + server.name).isprintable():
            raise RequestRefused(wire.RefusalCode.MALFORMED, "a server and its model need names that can be printed")
        if len(msgspec.msgpack.encode(server)) > MAX_SERVER:
            raise RequestRefused(wire.RefusalCode.MALFORMED, f"the announcement is over {MAX_SERVER} bytes")
        for address in server.addresses:
            if not is_dialable(address):
                raise RequestRefused(wire.RefusalCode.MALFORMED, f"{address!r} is no address that others could dial")
        for other in self._others(server, now):
            if reason := _conflict(other, server):
                raise RequestRefused(
                    wire.RefusalCode.CONFLICT,
                    f"model {server.model!r} is already served with other weights ({reason}): "
                    "serve yours under another name with --model-name",
                )

    def _others(self, server: wire.ServerInfo, now: float) -> list[wire.ServerInfo]:
        """The other servers of the same model, announced or held."""
        self._holds = {key: hold for key, hold in self._holds.items() if now < hold.until}
        held = (hold.server for hold in self._holds.values())
        return [o for o in (*self.view.servers.values(), *held) if _is_of_the_same(o, server)]

    def _throughputs(self, server: wire.ServerInfo, now: float) -> list[float]:
        """Tokens per second of each block without `server`. One that has not measured yet counts as average."""
        others = (other for other in self._others(server, now) if other.state != "draining")
        return [float(throughput) for throughput in throughputs(others, server.blocks)]

    # --- changes -----------------------------------------------------------------------------------------------------

    def _grant(self, key: str, ttl: float, now: float) -> None:
        until = now + ttl
        self._leases[key] = _Lease(ttl, until)
        self._next_end = until if self._next_end is None else min(self._next_end, until)

    def _remove(self, key: str, reason: str) -> Events:
        if self._leases.pop(key, None) is None:
            return ()
        if key in self.view.servers:
            self._left[key] = self.view.servers[key]
            self._left.move_to_end(key)
            if len(self._left) > self._max_servers:
                self._left.popitem(last=False)
        return self._happen(wire.PeerGone(key, reason))

    def _happen(self, event: wire.Event) -> Events:
        self.view = apply(self.view, event)
        return (event,)


def _is_key(text: str) -> bool:
    try:
        return z85.encode(z85.decode(text.encode())) == text.encode()
    except (ValueError, KeyError, struct.error):
        return False


def _same_but_for_load(known: wire.ServerInfo, server: wire.ServerInfo) -> bool:
    """Whether nothing changed that the rules look at, but for the span and the state."""
    return known == msgspec.structs.replace(
        server,
        start=known.start,
        end=known.end,
        state=known.state,
        throughput=known.throughput,
        kv_tokens=known.kv_tokens,
        load=known.load,
        memory=known.memory,
        movable=known.movable,
        revision=known.revision,
    )


def _is_of_the_same(one: wire.ServerInfo, other: wire.ServerInfo) -> bool:
    """Whether two servers share the blocks of one model."""
    return (one.model, one.protocol) == (other.model, other.protocol) and one.key != other.key


def _conflict(one: wire.ServerInfo, other: wire.ServerInfo) -> str:
    """On what two servers of one model disagree; empty: on nothing."""
    if one.blocks != other.blocks:
        return f"{one.blocks} blocks there, {other.blocks} here"
    if one.hidden_size != other.hidden_size:
        return f"hidden size {one.hidden_size} there, {other.hidden_size} here"
    differing = sorted(n for n, digest in other.fingerprint.items() if one.fingerprint.get(n, digest) != digest)
    return f"{', '.join(differing[:3])} differs" if differing else ""
