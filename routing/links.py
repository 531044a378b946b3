"""Encrypted connections with typed messages: `Listener` is dialled, `Dialer` dials.

An address is `host:port`, or `relay:host:port/name` for the way through a router (`routing.relay.rules`), which is
tried when the direct ones have failed.

Both belong to one thread, which polls their sockets. ROUTER identities are left to libzmq: it makes one per connection
that no peer can claim, and every message carries the sender's authenticated public key (ZAP's user id) instead.
"""

from __future__ import annotations

import errno
import logging
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal, NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from routing import wire
from routing.relay.rules import is_relayed, parse_address
from routing.relay.tunnel import Tunnel, Tunnels
from routing.security import ZAP_DOMAIN, Identity, short_id

log = logging.getLogger(__name__)

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]
LossReason = Literal["unreachable", "refused", "closed"]

HIGH_WATER = 1000  # messages; each is at most wire.MAX_TENSOR
HEARTBEAT = 2_000  # ms
HEARTBEAT_TIMEOUT = 8_000  # ms without any traffic until a host that vanished is given up
CONNECT_TIMEOUT = 3_000  # ms; for all direct addresses together where there is a relayed one
LEAST_TIMEOUT = 500  # ms for one of them
DIRECT_AGAIN = 300.0  # s for which a peer that was reached through a router only is looked for there first
RECONNECT = (100, 2_000)  # ms, first and longest pause
EXCLUDED = "netsh interface ipv4 show excludedportrange protocol=tcp"
FORBIDDEN = {errno.EACCES, errno.EPERM, 10013}  # the last is WSAEACCES
REFUSED_PAUSE = 0.2  # s; a key that has just been enrolled is known everywhere soon after


class LinkError(Exception):
    """An address that cannot be used. The text is for the user."""


class Received(NamedTuple):
    """A message. `peer` is the sender's public key; `route` leads back to it (Listener only)."""

    peer: str
    message: wire.AnyMessage
    array: wire.Array | None
    route: bytes = b""


class Connected(NamedTuple):
    """Connection to a peer that is up now."""

    peer: str


class Lost(NamedTuple):
    """Lost connection, or one that was not made; the dialer goes on trying until it hangs up. `refused`: the other side
    does not know our key, or is not the peer (`impostor`); `unreachable`: no peer answered.
    """

    peer: str
    reason: LossReason
    impostor: bool = False


LinkEvent = Received | Connected | Lost


def split_address(address: str) -> tuple[str, int]:
    """`host:port`, also `[v6]:port`. Raises: LinkError: it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise LinkError(f"{address!r} is no HOST:PORT")
    return host.strip("[]"), int(port)


def cannot_listen(bind: str, error: OSError | zmq.ZMQError) -> LinkError:
    """Why nothing can listen there, for the user."""
    if error.errno in (errno.EADDRINUSE, zmq.EADDRINUSE):
        host, port = split_address(bind)
        return LinkError(f"port {port} on {host} is in use: choose another, or 0 for any free one")
    if error.errno in FORBIDDEN:
        host, port = split_address(bind)
        return LinkError(f"port {port} on {host} {forbidden()}")
    return LinkError(f"cannot listen on {bind}: {error.strerror or error}")


def forbidden(windows: bool = sys.platform == "win32") -> str:
    """Why the system lets no process listen on a port that is not in use, and what to do."""
    if windows:
        return (
            "is kept by Windows or by another program (Hyper-V, WSL and Docker take whole ranges; this lists them: "
            f"{EXCLUDED}): choose another, or 0 for any free one"
        )
    return "is only for programs with special rights: choose one above 1023"


def _configure(socket: Socket, identity: Identity) -> None:
    socket.linger = 0
    socket.sndhwm = HIGH_WATER
    # libzmq 4.3.5 aborts the process (`!_io_error`) if it has stopped reading from a connection, because the queue was
    # full, and that connection breaks: the next heartbeat is written to it. So it must never stop reading.
    socket.rcvhwm = 0
    socket.maxmsgsize = wire.MAX_FRAME
    socket.heartbeat_ivl = HEARTBEAT
    socket.heartbeat_timeout = HEARTBEAT_TIMEOUT
    socket.ipv6 = True
    socket.curve_publickey = identity.public.encode()
    socket.curve_secretkey = identity.secret


class Listener:
    """Listener: a ROUTER to which only keys that the context's `ZapAuthenticator` admits can connect.

    Args:
        admits: whether a key that got in before still may speak. Nothing that another says is received, and its
            connection ends. None: all that got in may.
        on_noise: told of a peer that has sent what is no message.

    Raises:
        LinkError: the address is taken or not one of this machine.
    """

    def __init__(
        self,
        context: Context,
        bind: str,
        identity: Identity,
        admits: Callable[[str], bool] | None = None,
        on_noise: Callable[[str], None] = lambda peer: None,
    ) -> None:
        self._admits = admits
        self._on_noise = on_noise
        self._ended: deque[bytes] = deque(maxlen=1000)  # connections of which more may still be read
        host, port = split_address(bind)
        self.socket: Socket = context.socket(zmq.ROUTER)
        _configure(self.socket, identity)
        self.socket.curve_server = True
        self.socket.zap_domain = ZAP_DOMAIN.encode()
        self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self.socket.router_mandatory = True
        bracketed = f"[{host}]" if ":" in host else host
        try:
            self.socket.bind(f"tcp://{bracketed}:{port or '*'}")
        except zmq.ZMQError as error:
            self.socket.close()
            raise cannot_listen(bind, error) from None
        self.host = host
        self.port = int(bytes(self.socket.getsockopt(zmq.LAST_ENDPOINT)).decode().rpartition(":")[2])

    def receive(self) -> Received | None:
        """The next message, or None when there is none. What is no message is dropped and logged."""
        while True:
            if not _has_come(self.socket):
                return None
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            peer = str(frames[0].get("User-Id")) if frames else ""
            if self._admits is not None and not self._admits(peer):
                if frames[0].bytes not in self._ended:
                    self._ended.append(frames[0].bytes)
                    log.info("ended a connection of %s, which is not admitted any longer", short_id(peer))
                    _cut(frames[0])
                continue
            try:
                message, array = wire.decode([frame.buffer for frame in frames[1:]])
            except wire.WireError as error:
                log.warning("dropped what %s sent: %s", short_id(peer), error)
                self._on_noise(peer)
                continue
            return Received(peer, message, array, frames[0].bytes)

    def send(self, route: bytes, message: wire.Message, array: wire.Array | None = None) -> bool:
        """Answer along `route`. False: that connection is gone, or its queue is full."""
        try:
            self.socket.send_multipart([route, *wire.encode(message, array)], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def close(self) -> None:
        self.socket.close()


def _has_come(socket: Socket) -> bool:
    """Whether there is something to receive. An exception that says otherwise takes ten times as long."""
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)


def _cut(frame: zmq.Frame) -> None:
    """End the connection that a frame came along. libzmq has no call for that, but tells its file descriptor.

    By now the descriptor may be another connection's. One of the same machine is then cut and made anew; any other is
    left alone. On Windows libzmq ends the process when a socket of its own is shut down by others; there the connection
    stays, and what comes along it is dropped.
    """
    if sys.platform == "win32":
        return
    with suppress(OSError):
        connection = socket.socket(fileno=int(frame.get(zmq.SRCFD)))
        try:
            if connection.getpeername()[0] == frame.get("Peer-Address"):
                connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()


_MONITORED = (
    zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class _Link:
    """One DEALER, its monitor, and which of the peer's addresses it tries."""

    def __init__(
        self,
        context: Context,
        identity: Identity,
        peer: str,
        addresses: tuple[str, ...],
        tunnels: Tunnels,
        relayed_first: bool,
    ) -> None:
        self.addresses = addresses
        self.up = False
        self.refused = False  # by a host that may not be the peer
        self.denied = False  # by the peer itself
        self.redial_at: float | None = None
        self.resting = False  # libzmq waits before it tries again
        self.waiting: deque[list[bytes | memoryview]] = deque()  # sent before the connection was made
        self._tunnels = tunnels
        self._tunnel: Tunnel | None = None
        self.endpoint: str | None = None  # None: the address cannot be dialled
        self.socket: Socket = context.socket(zmq.DEALER)
        _configure(self.socket, identity)
        self.socket.curve_serverkey = peer.encode()
        # Nothing is queued inside libzmq for a connection that is not there: what was sent to a peer that left must
        # not reach it when it comes back.
        self.socket.immediate = True
        self.socket.handshake_ivl = CONNECT_TIMEOUT
        self.socket.reconnect_ivl, self.socket.reconnect_ivl_max = RECONNECT
        self.monitor: Socket = self.socket.get_monitor_socket(_MONITORED)
        try:
            self._connect(next((a for a in addresses if relayed_first and is_relayed(a)), addresses[0]))
        except zmq.ZMQError:
            self.close()
            raise

    @property
    def relayed(self) -> bool:
        """Whether it goes through a router, or tries to."""
        return is_relayed(self.address)

    @property
    def joined(self) -> bool:
        """Whether there was a peer at the other end: a router that finds none just hangs up."""
        return self._tunnel is None or self._tunnel.joined

    def _connect(self, address: str) -> None:
        self.address = address
        self.resting = False
        way = parse_address(address)
        direct = sum(not is_relayed(other) for other in self.addresses)
        shared = CONNECT_TIMEOUT // direct if 0 < direct < len(self.addresses) else CONNECT_TIMEOUT
        self.socket.connect_timeout = max(shared, LEAST_TIMEOUT)
        self.endpoint = None
        if way is not None:
            try:
                self._tunnel = self._tunnels.open(way)
            except OSError as error:
                log.warning("no port of this machine is free for the way through a router: %s", error)
                return
        endpoint = f"tcp://{address}" if self._tunnel is None else f"tcp://127.0.0.1:{self._tunnel.port}"
        self.socket.connect(endpoint)
        self.endpoint = endpoint

    def redial(self) -> None:
        """Connect to the next address; to the same one where there is no other, or where the peer itself said no."""
        self.redial_at = None
        self._disconnect()
        at = self.addresses.index(self.address) if self.address in self.addresses else -1
        step, self.denied = (0 if self.denied and at >= 0 else 1), False
        with suppress(zmq.ZMQError):  # no address at all: there may be others
            self._connect(self.addresses[(at + step) % len(self.addresses)])

    def _disconnect(self) -> None:
        if self.endpoint is not None:
            self.socket.disconnect(self.endpoint)
        if self._tunnel is not None:
            self._tunnel.close()
            self._tunnel = None

    def readdress(self, addresses: tuple[str, ...]) -> None:
        """The peer can be found elsewhere. A connection that is up stays: others use it too."""
        self.addresses = addresses
        if not self.up and self.address not in addresses:
            self.redial()

    def send(self, frames: list[bytes | memoryview]) -> bool:
        if not self.up:
            if len(self.waiting) >= HIGH_WATER:
                return False
            self.waiting.append(frames)
            return True
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def connected(self) -> None:
        self.up, self.resting, self.refused, self.denied = True, False, False, False
        while self.waiting and self.send(self.waiting[0]):
            self.waiting.popleft()

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
        if self._tunnel is not None:
            self._tunnel.close()


class Dialer:
    """DEALER connections to peers, by public key.

    Args:
        poller: the caller's; sockets are registered there.
        expelled: whether a key has lost its place in the swarm: its connection ends, and nothing is sent there.
    """

    def __init__(
        self,
        context: Context,
        identity: Identity,
        poller: zmq.Poller,
        clock: Callable[[], float] = time.monotonic,
        expelled: Callable[[str], bool] | None = None,
    ) -> None:
        self._clock = clock
        self._expelled = expelled
        self._context = context
        self._identity = identity
        self._poller = poller
        self._links: dict[str, _Link] = {}
        self._tunnels = Tunnels()
        self._relayed_until: dict[str, float] = {}  # peers to look for at a router first

    def __contains__(self, peer: str) -> bool:
        return peer in self._links

    def peers(self) -> set[str]:
        """All peers that were dialled and not hung up on."""
        return set(self._links)

    def dial(self, peer: str, addresses: tuple[str, ...]) -> None:
        """Connect to `peer`, trying its addresses in turn; does nothing where that is under way or done.

        A peer that did not answer a moment ago is tried again at once.

        Raises:
            zmq.ZMQError: the first address is none; see `routing.addresses.is_dialable`.
        """
        link = self._links.get(peer)
        if link is not None:
            if link.addresses != addresses:
                link.readdress(addresses)
            if not link.resting:
                return
            # It is wanted now, and may have come back meanwhile. A new socket, because what the old one's monitor has
            # still to say is not about the new connection.
            self.hang_up(peer)
        relayed_first = self._clock() < self._relayed_until.get(peer, 0.0)
        known, link = link, _Link(self._context, self._identity, peer, addresses, self._tunnels, relayed_first)
        if known is not None:
            link.waiting = known.waiting
        self._links[peer] = link
        self._poller.register(link.socket, zmq.POLLIN)
        self._poller.register(link.monitor, zmq.POLLIN)

    def hang_up(self, peer: str) -> None:
        link = self._links.pop(peer, None)
        if link is not None:
            self._poller.unregister(link.socket)
            self._poller.unregister(link.monitor)
            link.close()

    def is_up(self, peer: str) -> bool:
        link = self._links.get(peer)
        return link is not None and link.up

    def address(self, peer: str) -> str:
        """Where `peer` is connected to, or being tried; empty: it is not dialled."""
        link = self._links.get(peer)
        return link.address if link is not None else ""

    def relayed(self, peer: str) -> bool:
        """Whether `peer` is connected through a router."""
        return self.is_up(peer) and self._links[peer].relayed

    def send(self, peer: str, message: wire.Message, array: wire.Array | None = None) -> bool:
        """Queue a message, also while the connection is being made. False: not dialled, or the queue is full."""
        link = self._links.get(peer)
        return link is not None and link.send(wire.encode(message, array))

    def collect(self) -> Iterator[LinkEvent]:
        """Everything that has happened, without waiting."""
        for peer, link in list(self._links.items()):
            if self._expelled is not None and self._expelled(peer):
                self.hang_up(peer)
                yield Lost(peer, "closed" if link.up else "refused")
                continue
            # Messages first: a peer that answers and leaves must not seem to have left without an answer.
            while self._links.get(peer) is link and _has_come(link.socket):
                try:
                    frames = link.socket.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                try:
                    message, array = wire.decode([frame.buffer for frame in frames])
                except wire.WireError as error:
                    log.warning("dropped what %s sent: %s", short_id(peer), error)
                    continue
                yield Received(peer, message, array)
            while self._links.get(peer) is link and _has_come(link.monitor):
                event = self._monitored(peer, link)
                if event is not None:
                    yield event
            if link.endpoint is None and link.redial_at is None and self._links.get(peer) is link:
                link.redial_at = self._clock() + REFUSED_PAUSE
                yield Lost(peer, "unreachable")
            if link.redial_at is not None and self._clock() >= link.redial_at and self._links.get(peer) is link:
                link.redial()

    def _monitored(self, peer: str, link: _Link) -> Connected | Lost | None:
        event = recv_monitor_message(link.monitor, zmq.NOBLOCK)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            link.connected()
            self._remember(peer, link.relayed)
            return Connected(peer)
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            # libzmq does not reconnect after a refusal by the other side's authenticator.
            link.denied = True
            link.redial_at = self._clock() + REFUSED_PAUSE
            return Lost(peer, "refused")
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            link.refused = True
            return None
        if event == zmq.EVENT_DISCONNECTED and link.up:
            link.up = False
            link.waiting.clear()
            # libzmq reconnects and says so, unless the connection broke because of what the other side sent.
            link.redial_at = self._clock() + REFUSED_PAUSE
            return Lost(peer, "closed")
        if event == zmq.EVENT_DISCONNECTED and not link.refused and link.redial_at is None:
            # It does not speak ZMTP, or damages it; libzmq does not reconnect after that either.
            link.redial_at = self._clock() + REFUSED_PAUSE
            return Lost(peer, "refused", impostor=True) if link.joined else Lost(peer, "unreachable")
        if event == zmq.EVENT_CONNECT_RETRIED and not link.up:
            refused, link.refused = link.refused and link.joined, False
            link.redial_at = None
            link.resting = True
            if len(link.addresses) > 1 or link.address not in link.addresses:
                link.redial()
            return Lost(peer, "refused", impostor=True) if refused else Lost(peer, "unreachable")
        return None

    def _remember(self, peer: str, relayed: bool) -> None:
        """What was found out about the ways to a peer, so that the next connection need not find it out again."""
        now = self._clock()
        self._relayed_until = {other: until for other, until in self._relayed_until.items() if now < until}
        if not relayed:
            self._relayed_until.pop(peer, None)
        elif peer not in self._relayed_until:
            self._relayed_until[peer] = now + DIRECT_AGAIN

    def close(self) -> None:
        for peer in list(self._links):
            self.hang_up(peer)
        self._tunnels.close()
