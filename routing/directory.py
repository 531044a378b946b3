"""The directory: admits peers, keeps their leases, assigns spans, and tells everybody what changes.

One thread, one ROUTER. The rules are `routing.registry`'s, the files `routing.ledger`'s. Who may connect is decided in
the handshake: members, and holders of the join token, whose secret is a CURVE secret key. Under that key nothing but
`Enrol` is answered; whoever has enrolled connects anew as itself. A peer is its authenticated key (`Received.peer`).

Watchers get the state in `Snapshot`s that a `Done` ends, then every `Change` (see `routing.view`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import zmq

from routing import wire
from routing.addresses import reachable
from routing.errors import DirectoryError
from routing.ledger import Enrolment, Ledger, State
from routing.links import Context, LinkError, Listener, Received
from routing.registry import Events, Refusal, Registry
from routing.security import Gate, JoinToken
from routing.view import only_figures_differ

__all__ = ["Directory", "DirectoryError", "reachable"]

log = logging.getLogger(__name__)

Entry = TypeVar("Entry", wire.Member, wire.Server)

TICK = 0.2  # s between two looks at `stop`
BATCH = 1000  # messages handled between two looks at the leases
PART = 1 << 20  # bytes of servers or members in one `Snapshot`
WATCHES = 8  # connections on which one peer may watch
ENROLLED = 1024  # connections under an enrolment key to remember
FIGURES = 5000  # changes of mere figures that may be sent per second, over all watchers


@dataclass
class _Watcher:
    peer: str
    request: int
    behind: bool = False  # its queue was full: it needs the state again


class Directory:
    """
    Args:
        bind: `HOST:PORT`; port 0 takes any free one.
        state_dir: made if it is not there; see `routing.ledger`.
        advertise: names under which others reach this machine, as HOST or HOST:PORT, in place of its own addresses.
        token_ttl: seconds until the join token expires, None: never. A token that is still good is kept over a
            restart, unless one that expires is asked for and the old one does not, or the other way round; then a new
            one takes its place.
        clock: seconds since the epoch, for what people see and what outlives the process.
        ticks: seconds of a clock that does not jump, for leases.

    Raises:
        DirectoryError: the port is taken, or the state cannot be used.
    """

    def __init__(
        self,
        bind: str,
        state_dir: Path | str,
        *,
        advertise: Sequence[str] = (),
        token_ttl: float | None = None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._ticks = ticks
        self._watchers: dict[bytes, _Watcher] = {}
        self._enrolled: OrderedDict[bytes, str] = OrderedDict()
        self._figures: dict[str, wire.Updated] = {}  # changes of mere figures that wait for their turn
        self._figures_at = 0.0
        self._sequence = 0
        self._resources = ExitStack()
        with self._resources:
            self._ledger = Ledger(Path(state_dir))
            self._resources.callback(self._ledger.close)
            enrolment = self._enrolment(token_ttl)
            enrolments = {entry.key: entry.expires for entry in self._ledger.state.enrolments}
            self._registry = Registry(self._ledger.state.members, enrolments)
            context: Context = zmq.Context()
            self._resources.callback(context.term)
            gate = Gate(context, lambda key: self._registry.admits(key, self._clock()))
            self._resources.callback(gate.close)
            try:
                self._listener = Listener(context, bind, self._ledger.identity)
                self._resources.callback(self._listener.close)
                addresses = reachable(self._listener.host, self._listener.port, advertise)
            except LinkError as error:
                raise DirectoryError(str(error)) from error
            self._resources = self._resources.pop_all()
        assert self._ledger.token is not None
        self.token = JoinToken(addresses, self._ledger.identity.public, self._ledger.token.secret, enrolment.expires)

    def _enrolment(self, token_ttl: float | None) -> Enrolment:
        """The enrolment of the join token: the one on disk, or a new one that replaces it."""
        now = self._clock()
        state, token = self._ledger.state, self._ledger.token
        for known in state.enrolments:
            good = known.expires is None or now < known.expires
            as_asked = (known.expires is None) == (token_ttl is None)
            if token is not None and known.key == token.public and good and as_asked:
                return known
        try:
            public = self._ledger.new_token().public
            enrolment = Enrolment(public, None if token_ttl is None else now + token_ttl)
            self._ledger.save(State(state.members, (enrolment,)))
        except OSError as error:
            raise DirectoryError(f"cannot save the join token: {error.strerror or error}") from error
        return enrolment

    @property
    def address(self) -> str:
        """`host:port`, the best of the token's."""
        return self.token.addresses[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._resources.close()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set."""
        log.info("directory of %d members at %s", len(self._registry.view.members), ", ".join(self.token.addresses))
        while not stop.is_set():
            self._listener.socket.poll(self._patience())
            # Messages first: a lease is not over while what extends it lies unread.
            for _ in range(BATCH):
                received = self._listener.receive()
                if received is None:
                    break
                self._handle(received)
            now = self._ticks()
            self._publish(self._registry.expire(now))
            self._publish_figures(now)
            self._catch_up()

    def _patience(self) -> int:
        """Milliseconds until something is due."""
        now = self._ticks()
        due = now + TICK
        if (expiry := self._registry.next_expiry()) is not None:
            due = min(due, expiry)
        if self._figures:
            due = min(due, self._figures_at)
        return max(int((due - now) * 1000) + 1, 0)

    def _handle(self, received: Received) -> None:
        peer, message, _, route = received
        request = getattr(message, "request", 0)
        try:
            events, answer = self._answer(received, request)
        except Refusal as refusal:
            log.info("refused %s of %s: %s", type(message).__name__, peer[:8], refusal.reason)
            self._listener.send(route, wire.Refused(refusal.code, refusal.reason, request=request))
            return
        # The answer is sent before the change: who is told that it may connect finds out at once.
        if answer is not None:
            self._listener.send(route, answer)
        self._publish(events)

    def _answer(self, received: Received, request: int) -> tuple[Events, wire.Message | None]:
        peer, message, _, route = received
        now = self._ticks()
        if isinstance(message, wire.Enrol):
            return self._enrol(peer, route, message), wire.Done(request)
        if not self._registry.is_member(peer):
            raise Refusal("not-a-member", "only members are answered: enrol first")
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
                self._watch(peer, route, request)
                return (), None
            case wire.Ping():
                return (), wire.Pong(request)
            case _:
                raise Refusal("malformed", f"a directory has no answer to {type(message).__name__}")

    def _announce(self, peer: str, server: wire.Server, ttl: float, now: float) -> Events:
        known = self._registry.view.servers.get(peer)
        events = self._registry.announce(peer, server, ttl, now)
        if known is None:
            log.info(
                "server %s (%s) has blocks %d:%d of %s", peer[:8], server.name, server.start, server.end, server.model
            )
        elif events and only_figures_differ(known, server):
            self._figures[peer] = wire.Updated(server)
            return ()
        return events

    def _enrol(self, by: str, route: bytes, message: wire.Enrol) -> Events:
        if self._enrolled.get(route, message.key) != message.key:
            raise Refusal("malformed", "one peer enrols on a connection")
        events = self._registry.enrol(by, message.key, message.name, self._clock())
        if events:
            try:
                members = tuple(self._registry.view.members.values())
                self._ledger.save(State(members, self._ledger.state.enrolments))
            except OSError as error:
                self._registry.expel(message.key, "it could not be saved")
                log.error("cannot save the members: %s", error)
                reason = f"the directory cannot save its members ({error.strerror or error})"
                raise Refusal("full", f"{reason}: make room on its disk") from error
            log.info("enrolled %s as %s", message.key[:8], message.name or "a peer")
        self._enrolled[route] = message.key
        if len(self._enrolled) > ENROLLED:
            self._enrolled.popitem(last=False)
        return events

    # --- the feed ----------------------------------------------------------------------------------------------------

    def _watch(self, peer: str, route: bytes, request: int) -> None:
        self._watchers.pop(route, None)
        routes = [known for known, watcher in self._watchers.items() if watcher.peer == peer]
        if len(routes) >= WATCHES:
            del self._watchers[routes[0]]
        self._watchers[route] = _Watcher(peer, request)
        self._send_state(route, self._watchers[route])

    def _send_state(self, route: bytes, watcher: _Watcher) -> None:
        for message in (*self._snapshots(watcher.request), wire.Done(watcher.request)):
            if not self._send(route, watcher, wire.encode(message)):
                return
        watcher.behind = False

    def _snapshots(self, request: int) -> Iterator[wire.Snapshot]:
        view = self._registry.view
        yield wire.Snapshot(request, self._sequence, (), (), tuple(view.routers.values()))
        for members in _parts(tuple(view.members.values())):
            yield wire.Snapshot(request, self._sequence, members, ())
        for servers in _parts(tuple(view.servers.values())):
            yield wire.Snapshot(request, self._sequence, (), servers)

    def _publish(self, events: Events) -> None:
        for event in events:
            match event:
                case wire.Updated(server):
                    self._figures.pop(server.key, None)
                case wire.Gone(key, reason):
                    log.info("%s is gone: %s", key[:8], reason)
                    self._figures.pop(key, None)
            self._broadcast(event)

    def _broadcast(self, event: wire.Event) -> None:
        self._sequence += 1
        frames = wire.encode(wire.Change(self._sequence, event))
        for route, watcher in list(self._watchers.items()):
            if not watcher.behind:
                self._send(route, watcher, frames)

    def _publish_figures(self, now: float) -> None:
        """Load and free memory change all the time; how often all hear of it depends on how many they are."""
        if self._figures and now >= self._figures_at:
            waiting, self._figures = self._figures, {}
            self._figures_at = now + len(waiting) * len(self._watchers) / FIGURES
            for event in waiting.values():
                self._broadcast(event)

    def _catch_up(self) -> None:
        for route, watcher in list(self._watchers.items()):
            if watcher.behind:
                self._send_state(route, watcher)

    def _send(self, route: bytes, watcher: _Watcher, frames: list[bytes | memoryview]) -> bool:
        """Send what is encoded once for all. A watcher that is gone is forgotten, one that does not read is noted."""
        try:
            self._listener.socket.send_multipart([route, *frames], zmq.NOBLOCK)
        except zmq.Again:
            watcher.behind = True
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._watchers.pop(route, None)
            return False
        return True


def _parts(entries: Sequence[Entry]) -> Iterator[tuple[Entry, ...]]:
    """Cut so that a message of one part fits a frame."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        part.append(entry)
        size += len(msgspec.msgpack.encode(entry))
        if size >= PART:
            yield tuple(part)
            part, size = [], 0
    if part:
        yield tuple(part)
