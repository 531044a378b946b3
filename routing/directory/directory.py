"""The directory: admits peers, keeps their leases, assigns spans, and tells all peers what changes.

One thread, one ROUTER. The rules are `routing.directory.registry`'s, the files `routing.directory.store`'s. Who may
connect is decided in the handshake: members, other directories, the administrator, and holders of a join token, whose
secret is a CURVE secret key. Under that key nothing but `Enrol` is answered; a peer that has enrolled connects anew as
itself. A peer is its authenticated key (`Received.peer`).

Several directories keep each other informed (`routing.directory.replication`) of what must not be lost with one of them
(see `routing.directory.roster`). Leases they do not exchange: servers announce to all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zmq

from routing import wire
from routing.addresses import MOST, machine, reachable
from routing.directory.feed import Feed
from routing.directory.registry import Events, Registry, RequestRefused
from routing.directory.replication import DirectoryPeer, messages_of
from routing.directory.store import DirectoryStore
from routing.errors import DirectoryError
from routing.limits import RateLimit
from routing.links import Context, LinkError, Listener, Received
from routing.membership.enrolment import Enrolment
from routing.security import DirectoryAddress, Identity, JoinToken, SecurityError, ZapAuthenticator, short_id
from routing.view import only_figures_differ

__all__ = ["Directory", "DirectoryError", "reachable"]

log = logging.getLogger(__name__)

TICK = 0.2  # s between two looks at `stop`
BATCH = 1000  # messages handled between two looks at the leases
ENROLLED = 1024  # connections under an enrolment key to remember
JOIN_TIMEOUT = 10.0  # s for another directory to answer
RATE, BURST = 50.0, 1000.0  # what one key may ask per second in the long run, and at once
FLOOD = 10_000.0, 30_000.0  # messages of one key that are read at all, as above; more end its connection
COSTS: dict[type[wire.Message], float] = {wire.Watch: 20.0, wire.Place: 10.0, wire.Enrol: 5.0}  # others cost 1

EXPELLED = "this directory was expelled from the swarm: to start a new one, use another folder"


class Directory:
    """Directory: the service that admits peers, keeps leases and tells watchers.

    Args:
        bind: `HOST:PORT`; port 0 takes any free one.
        state_dir: made if it is not there; see `routing.directory.store`.
        advertise: names under which others reach this machine, as HOST or HOST:PORT, in place of its own addresses.
        token_ttl: seconds until the join token expires, None: never. A token that is still good is kept over a
            restart, unless one that expires is asked for and the old one does not, or the other way round; then a new
            one takes its place.
        join: a token that admits a directory. This one becomes one of that swarm's, and stays it over restarts.
        name: shown to people.
        clock: seconds since the epoch, for what people see and what outlives the process.
        ticks: seconds of a clock that does not jump, for leases.

    Raises:
        DirectoryError: the port is taken, the state cannot be used, or the swarm to join does not take it.
    """

    def __init__(
        self,
        bind: str,
        state_dir: Path | str,
        *,
        advertise: Sequence[str] = (),
        token_ttl: float | None = None,
        join: JoinToken | None = None,
        name: str = "",
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._ticks = ticks
        self._join = join
        self._enrolled: OrderedDict[bytes, str] = OrderedDict()
        self._peers: dict[str, DirectoryPeer] = {}
        self._consulting: dict[str, tuple[bytes, int]] = {}  # directories that want to hear what changes
        self._seen: dict[str, float] = {}
        self._limit = RateLimit(RATE, BURST, ticks)
        self._flood = RateLimit(*FLOOD, ticks)
        self._resources = ExitStack()
        with self._resources:
            self._store = DirectoryStore(Path(state_dir))
            self._resources.callback(self._store.close)
            self._registry = Registry(self._store.roster)
            self._tried = self._kept = self._store.roster  # what was to be saved last; what peers were told
            self._context: Context = zmq.Context()
            self._resources.callback(self._context.term)
            authenticator = ZapAuthenticator(self._context, self._admits)
            self._resources.callback(authenticator.close)
            self._poller = zmq.Poller()
            try:
                self._listener = Listener(self._context, bind, self._store.identity, self._may_speak)
                self._resources.callback(self._listener.close)
                self.addresses = reachable(self._listener.host, self._listener.port, advertise)
            except LinkError as error:
                raise DirectoryError(str(error)) from error
            self._poller.register(self._listener.socket, zmq.POLLIN)
            self._feed = Feed(self._listener, lambda: self._registry.view)
            self._resources.callback(self._close_colleagues)
            try:
                self._store.save_admin(self.addresses)
                self._prepare_folder(name or f"{machine()}-directory", token_ttl)
            except OSError as error:
                raise DirectoryError(f"cannot save the join token: {error.strerror or error}") from error
            if join is not None:
                self._join_swarm(join)
            self._resources = self._resources.pop_all()

    def _prepare_folder(self, name: str, token_ttl: float | None) -> None:
        """Write down where this directory is, and with which join token peers come: the one on disk, or a new one."""
        now = self._clock()
        own = wire.DirectoryInfo(self._store.identity.public, name, self.addresses, now)
        if own.key in self._registry.roster.expelled:
            raise DirectoryError(EXPELLED)
        known = self._registry.roster.sites.get(own.key)
        if known is not None:
            own = msgspec.structs.replace(own, token=known.token, updated=max(now, known.updated))
        elif self._join is not None:
            own = msgspec.structs.replace(own, token=short_id(_identity_of(self._join).public))
        if known is None or known != msgspec.structs.replace(own, updated=known.updated):
            self._registry.locate(own)
        token = self._store.token
        known_token = self._registry.roster.enrolments.get(token.public) if token is not None else None
        if known_token is not None:
            good = self._registry.roster.trouble(known_token, now) == ""
            as_asked = (known_token.expires is None) == (token_ttl is None)
            if not (good and as_asked):
                self._registry.revoke(known_token.key, now)
                known_token = None
        if known_token is None:
            public = self._store.new_token().public
            self._registry.issue(wire.TokenRecord(public, now, None if token_ttl is None else now + token_ttl))
        self._save()

    def _join_swarm(self, join: JoinToken) -> None:
        """Ask the directories of a token, which enrols this one, for all that they know.

        Raises:
            DirectoryError: none of them lets it in. Where one has before, it is tried again later instead.
        """
        known = any(site.key in self._registry.roster.sites for site in join.directories)
        for site in join.directories:  # so that they may ask back
            self._registry.locate(wire.DirectoryInfo(site.key, "", site.addresses[:MOST], 0.0))
        self._tried = self._registry.roster  # to be saved once one of them has let this one in
        asked = [self._meet(site) for site in join.directories if site.key != self._store.identity.public]
        until = self._ticks() + JOIN_TIMEOUT
        while not any(directory_peer.consulted for directory_peer in asked):
            denied = [directory_peer for directory_peer in asked if directory_peer.denied is not None]
            if len(denied) == len(asked) or self._ticks() >= until:
                if known:
                    return
                raise DirectoryError((denied or asked)[0].trouble())
            self._poller.poll(50)
            self._consult()

    @property
    def token(self) -> JoinToken:
        """With which peers join, at any of the swarm's directories."""
        assert self._store.token is not None
        identity = self._store.identity
        expires = self._registry.roster.enrolments[self._store.token.public].expires
        sites = self._registry.roster.sites.values()
        others = tuple(DirectoryAddress(site.key, site.addresses) for site in sites if site.key != identity.public)
        return JoinToken(self.addresses, identity.public, self._store.token.secret, expires, others)

    @property
    def address(self) -> str:
        """`host:port`, the best of the token's."""
        return self.addresses[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._resources.close()

    def _admits(self, key: str) -> bool:
        """Who may connect. Called in the authenticator's thread."""
        return key == self._store.admin.public or self._registry.admits(key, self._clock())

    def _may_speak(self, key: str) -> bool:
        """Whose connections stay: also under a token that is not good any longer, to be told so."""
        return key not in self._registry.roster.expelled and not self._flood.spend(key)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set.

        Raises:
            DirectoryError: this directory was expelled.
        """
        log.info("directory of %d members at %s", len(self._registry.view.members), ", ".join(self.addresses))
        while not stop.is_set():
            self._poller.poll(self._patience())
            # Messages first: a lease is not over while what extends it lies unread.
            for _ in range(BATCH):
                received = self._listener.receive()
                if received is None:
                    break
                self._handle(received)
            self._consult()
            now = self._ticks()
            self._publish(self._registry.expire(now))
            self._feed.catch_up(now)

    def _patience(self) -> int:
        """Milliseconds until something is due."""
        now = self._ticks()
        due = now + TICK
        if (expiry := self._registry.next_expiry()) is not None:
            due = min(due, expiry)
        if (figures := self._feed.figures_due()) is not None:
            due = min(due, figures)
        return max(int((due - now) * 1000) + 1, 0)

    def _handle(self, received: Received) -> None:
        peer, message, _, route = received
        request = getattr(message, "request", 0)
        try:
            if wait := self._limit.spend(peer, COSTS.get(type(message), 1.0)):
                log.debug("%s asks more than %.0f times a second, which is the limit", short_id(peer), RATE)
                text = f"you ask more than {RATE:.0f} times a second, which is the limit: ask again in {wait:.1f} s"
                self._listener.send(
                    route,
                    wire.Refused(wire.RefusalCode.BUSY, text, request=request, retry_after=wait),
                )
                return
            events, answer = self._answer(received, request)
        except RequestRefused as refusal:
            log.info("refused %s of %s: %s", type(message).__name__, short_id(peer), refusal.reason)
            self._listener.send(
                route, wire.Refused(refusal.code, refusal.reason, request=request, retry_after=refusal.retry_after)
            )
            return
        # The answer is sent before the change: who is told that it may connect finds out at once.
        if answer is not None:
            self._listener.send(route, answer)
        self._publish(events)
        self._tell_colleagues()

    def _answer(self, received: Received, request: int) -> tuple[Events, wire.Message | None]:
        peer, message, _, route = received
        match message:
            case wire.Enrol():
                return self._enrol(peer, route, message), wire.Done(request)
            case wire.Consult() if self._registry.is_directory(peer) or peer == self._store.admin.public:
                return self._tell(peer, route, message), wire.Done(request)
            case wire.Issue() | wire.Revoke() | wire.Expel() if peer == self._store.admin.public:
                return self._decide(message), wire.Done(request)
        if not self._registry.is_member(peer):
            raise RequestRefused(wire.RefusalCode.NOT_A_MEMBER, "only members are answered: enrol first")
        now = self._ticks()
        self._seen[peer] = self._clock()
        self._registry.heard(peer, now)
        match message:
            case wire.Announce(_, server, ttl):
                return self._announce(peer, server, ttl, now), wire.Done(request)
            case wire.AnnounceRouter(_, router, ttl):
                return self._registry.announce_router(peer, router, ttl, now), wire.Done(request)
            case wire.Withdraw():
                return self._registry.withdraw(peer), wire.Done(request)
            case wire.Place(_, server, capacity, ttl):
                start, end = self._registry.place(peer, server, capacity, ttl, now)
                return (), wire.Placed(request, start, end)
            case wire.Watch():
                self._feed.watch(peer, route, request)
                return (), None
            case wire.Ping():
                return (), wire.Pong(request)
            case wire.Issue() | wire.Revoke() | wire.Expel() | wire.Consult():
                raise RequestRefused(
                    wire.RefusalCode.NOT_YOURS, "only an administrator may do this, with the directory's admin.key"
                )
            case _:
                raise RequestRefused(
                    wire.RefusalCode.MALFORMED, f"a directory has no answer to {type(message).__name__}"
                )

    def _announce(self, peer: str, server: wire.ServerInfo, ttl: float, now: float) -> Events:
        known = self._registry.view.servers.get(peer)
        events = self._registry.announce(peer, server, ttl, now)
        if known is None:
            log.info(
                "server %s (%s) has blocks %d:%d of %s",
                short_id(peer),
                server.name,
                server.start,
                server.end,
                server.model,
            )
        elif events and only_figures_differ(known, server):
            self._feed.publish_later(wire.ServerUpdated(server))
            return ()
        return events

    def _enrol(self, by: str, route: bytes, message: wire.Enrol) -> Events:
        if self._enrolled.get(route, message.key) != message.key:
            raise RequestRefused(wire.RefusalCode.MALFORMED, "one peer enrols on a connection")
        before = self._registry.roster, self._registry.view
        events = self._registry.enrol(
            by, message.key, message.name, self._clock(), message.role, tuple(message.addresses)
        )
        if events:
            try:
                self._save()
            except OSError as error:
                self._registry.roster, self._registry.view = before
                log.error("cannot save the members: %s", error)
                reason = f"the directory cannot save its members ({error.strerror or error})"
                raise RequestRefused(wire.RefusalCode.FULL, f"{reason}: make room on its disk") from error
            log.info("enrolled %s as %s", short_id(message.key), message.name or "a peer")
        self._enrolled[route] = message.key
        if len(self._enrolled) > ENROLLED:
            self._enrolled.popitem(last=False)
        return events

    def _publish(self, events: Events) -> None:
        for event in events:
            match event:
                case wire.PeerGone(key, reason):
                    log.info("%s is gone: %s", short_id(key), reason)
                case wire.MemberExpelled(key):
                    log.info("expelled %s", short_id(key))
                    self._seen.pop(key, None)
                    if key in self._peers:
                        self._peers.pop(key).close()
        self._feed.publish(events)

    # --- administration ----------------------------------------------------------------------------------------------

    def _decide(self, message: wire.Issue | wire.Revoke | wire.Expel) -> Events:
        now = self._clock()
        match message:
            case wire.Issue(_, key, ttl, uses, role):
                expires = None if ttl is None else now + ttl
                events = self._registry.issue(wire.TokenRecord(key, now, expires, uses, None, role))
                log.info("issued join token %s", short_id(key))
            case wire.Revoke(_, key):
                events = self._registry.revoke(key, now)
                log.info("revoked join token %s", short_id(key))
            case wire.Expel(_, key) if key == self._store.identity.public:
                raise RequestRefused(
                    wire.RefusalCode.NOT_YOURS, "a directory cannot expel itself: do it at another one"
                )
            case wire.Expel(_, key):
                events = self._registry.expel(key, now)
        try:
            self._save()
        except OSError as error:
            log.error("cannot save what was decided: %s", error)
            self._publish(events)
            reason = error.strerror or error
            raise RequestRefused(
                wire.RefusalCode.FULL, f"it holds, but is forgotten at the next start: it cannot be saved ({reason})"
            ) from error
        return events

    def _tell(self, peer: str, route: bytes, message: wire.Consult) -> Events:
        """What we know, to another directory or the administrator."""
        events: Events = ()
        if message.site is not None and message.site.key == peer and self._registry.is_directory(peer):
            self._consulting[peer] = route, message.request
            events = self._registry.locate(message.site)
        if message.digest != self._registry.roster.digest:
            for part in messages_of(self._registry.roster, message.request):
                self._listener.send(route, part)
        if peer == self._store.admin.public:
            now = self._clock()
            seen = self._seen | dict.fromkeys(self._feed.present(), now)
            self._listener.send(route, wire.RosterPart(message.request, seen=seen))
        return events

    # --- other directories -------------------------------------------------------------------------------------------

    def _meet(self, site: DirectoryAddress) -> DirectoryPeer:
        known = self._peers.get(site.key)
        if known is not None:
            known.move(site.addresses)
            return known
        identity = self._store.identity
        own = self._registry.roster.sites[identity.public]
        admission = Enrolment(
            self._context,
            self._poller,
            site,
            self._join.secret if self._join is not None else None,
            identity,
            wire.Enrol(0, identity.public, own.name, "directory", self.addresses),
            JOIN_TIMEOUT,
            self._ticks,
            lambda: self._join.expiry(self._clock()) if self._join is not None else "",
        )
        directory_peer = self._peers[site.key] = DirectoryPeer(admission, self._ticks)
        return directory_peer

    def _consult(self) -> None:
        """Take in what the other directories say, and ask those that it is time to ask."""
        own = self._registry.roster.sites.get(self._store.identity.public)
        if own is None:
            raise DirectoryError(EXPELLED)
        for directory_peer in list(self._peers.values()):
            for roster in directory_peer.step(lambda: self._registry.roster.digest, own):
                self._publish(self._registry.merge(roster))
        if self._registry.roster is not self._tried:
            try:
                self._save()
            except OSError as error:
                log.error("cannot save what another directory says: %s", error)
        for site in self._registry.roster.sites.values():
            if site.key != own.key:
                self._meet(DirectoryAddress(site.key, site.addresses))
        self._tell_colleagues()

    def _tell_colleagues(self) -> None:
        """Push what is new. Whom it does not reach will ask."""
        roster = self._registry.roster
        if roster is not self._kept:
            new, self._kept = roster.since(self._kept), roster
            for key, (route, request) in list(self._consulting.items()):
                for part in messages_of(new, request):
                    self._listener.send(route, part)
                if key in new.expelled:  # it has heard so itself, and hears nothing more
                    del self._consulting[key]

    def _save(self) -> None:
        """Raises: OSError: what must not be lost could not be written."""
        self._tried = self._registry.roster
        if self._registry.roster is not self._store.roster:
            self._store.save(self._registry.roster)

    def _close_colleagues(self) -> None:
        for directory_peer in self._peers.values():
            directory_peer.close()


def _identity_of(token: JoinToken) -> Identity:
    try:
        return Identity.from_secret(token.secret)
    except SecurityError as error:
        raise DirectoryError(f"the join token holds no key: {error}") from error
