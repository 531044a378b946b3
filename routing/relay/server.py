"""The router: a relay for peers that cannot be dialled, because they sit behind a NAT or a firewall.

It joins TCP connections, so CurveZMQ's handshake runs between the two peers, and all that the router carries is
encrypted with keys that it does not have: it can delay and cut, but neither read nor forge. A peer that wants to be
reached registers over an authenticated connection. When a dialer asks for it, the router tells it of a ticket; the peer
opens a connection of its own (`routing.relay.agent`), shows the ticket, and is joined to the dialer.

One port does it all: the first bytes of a connection say what it wants (`routing.relay.rules`, which holds the rules).
Two threads: the owner's polls the listener at which peers register, the other runs an asyncio loop for the connections.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Self

import zmq

from routing import wire
from routing.addresses import reachable
from routing.links import Context, Listener, Received, cannot_listen, split_address
from routing.relay.rules import JOINED, PREAMBLE, ZMTP, PendingCall, Preamble, Relay, RelayLimits
from routing.relay.splice import BACKLOG, IDLE, Background, SplicedStream, connect, serve, splice
from routing.security import Identity, ZapAuthenticator
from routing.thread import CommandQueue

log = logging.getLogger(__name__)

TICK = 200  # ms between two looks at `stop`
BATCH = 1000  # registrations handled between two looks at the callers
HURRY = 5.0  # s


class _Guest(NamedTuple):
    """A dialer that waits for a peer's connection, and will be done with it."""

    met: asyncio.Future[SplicedStream]
    parted: asyncio.Future[None]


class RelayServer:
    """Relay server: the service of `swarm-router`.

    Args:
        bind: `HOST:PORT`; port 0 takes any free one.
        admits: whether a peer with this public key may connect; asked from any thread.
        heard: whether the message of a peer that has just come should be read; otherwise its connection ends. By
            default `admits`.
        advertise: names under which others reach this machine, as HOST or HOST:PORT, in place of its own addresses.
        hurry: seconds for a connection to say what it wants.
        idle: seconds after which a connection on which nothing moves is cut.

    Raises:
        LinkError: the address is taken or not one of this machine.
    """

    def __init__(
        self,
        bind: str,
        identity: Identity,
        admits: Callable[[str], bool],
        *,
        heard: Callable[[str], bool] | None = None,
        advertise: Sequence[str] = (),
        limits: RelayLimits | None = None,
        hurry: float = HURRY,
        idle: float = IDLE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._admits = admits
        self._hurry = hurry
        self._idle = idle
        self._clock = clock
        self._relay = Relay(limits)
        self._lock = threading.Lock()  # of the relay, which both threads ask
        self._guests: dict[bytes, _Guest] = {}  # by ticket
        self._resources = ExitStack()
        with self._resources:
            listening = _listen(bind)
            self._resources.callback(listening.close)
            port = int(listening.getsockname()[1])
            self.addresses = reachable(split_address(bind)[0], port, advertise)
            context: Context = zmq.Context()
            self._resources.callback(context.term)
            authenticator = ZapAuthenticator(context, admits)
            self._resources.callback(authenticator.close)
            self._listener = Listener(context, "127.0.0.1:0", identity, heard or admits)
            self._resources.callback(self._listener.close)
            self._poller = zmq.Poller()
            self._commands = CommandQueue(context, self._poller)
            self._resources.callback(self._commands.close)
            self._background = Background("router")
            self._resources.callback(self._background.close)
            self._background.start(serve(listening, self._on_connection))
            self._resources = self._resources.pop_all()

    def entry(self, name: str) -> wire.RouterInfo:
        """What to announce to the directory."""
        return wire.RouterInfo(self._identity.public, name, self.addresses)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._resources.close()

    # --- the peers that register: the owner's thread -----------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set."""
        self._poller.register(self._listener.socket, zmq.POLLIN)
        while not stop.is_set():
            self._poller.poll(TICK)
            for _ in range(BATCH):
                received = self._listener.receive()
                if received is None:
                    break
                self._answer(received)
            self._commands.run()

    def _answer(self, received: Received) -> None:
        peer, message, _, route = received
        request = getattr(message, "request", 0)
        answer: wire.Message = wire.Done(request)
        match message:
            case wire.Register():
                with self._lock:
                    if not self._relay.register(peer, route, self._clock()):
                        text = f"this router has {self._relay.limits.peers} peers, which is its limit: try another"
                        answer = wire.Refused(wire.RefusalCode.FULL, text, request=request)
            case wire.Ping():
                answer = wire.Pong(request)
            case _:
                answer = wire.Refused(wire.RefusalCode.MALFORMED, "a router has no answer to this", request=request)
        self._listener.send(route, answer)

    def _tell(self, call: PendingCall) -> None:
        # A member that has been expelled may still be connected.
        if self._admits(call.key) and self._listener.send(call.route, wire.Caller(call.ticket)):
            return
        with self._lock:
            self._relay.forget(call.key, call.route)
        self._background.start(self._give_up(call.ticket))

    # --- the connections: the other thread ---------------------------------------------------------------------------

    async def _on_connection(self, stream: SplicedStream) -> None:
        source = str((stream.writer.get_extra_info("peername") or ("?",))[0])
        with self._lock:
            taken = self._relay.arrive(source)
        if not taken:
            stream.writer.transport.abort()
            return
        try:
            await self._serve(stream)
        finally:
            with self._lock:
                self._relay.leave(source)

    async def _serve(self, stream: SplicedStream) -> None:
        async with asyncio.timeout(self._hurry):
            first = await stream.reader.readexactly(1)
            rest = b"" if first == ZMTP else await stream.reader.readexactly(PREAMBLE - 1)
        if first == ZMTP:
            own = await connect("127.0.0.1", self._listener.port, HURRY)
            own.writer.write(first)
            await splice(stream, own, self._idle)
            return
        match Preamble.parse(first + rest):
            case Preamble("dial", name):
                await self._dial(stream, name)
            case Preamble("ticket", ticket):
                await self._join(stream, ticket)

    async def _dial(self, stream: SplicedStream, name: bytes) -> None:
        """Let the peer know, wait for it, and join the two."""
        with self._lock:
            call = self._relay.dial(name, self._clock())
        if call is None:
            return
        loop = asyncio.get_running_loop()
        guest = self._guests[call.ticket] = _Guest(loop.create_future(), loop.create_future())
        try:
            self._commands.put(lambda: self._tell(call))
            async with asyncio.timeout(self._relay.limits.patience):
                peer = await guest.met
            for each in (stream, peer):
                each.writer.write(JOINED)
            await splice(stream, peer, self._idle)
        finally:
            with self._lock:
                self._relay.hung_up(call)
            del self._guests[call.ticket]
            if not guest.parted.done():  # cancelled, where the router itself ends
                guest.parted.set_result(None)

    async def _join(self, stream: SplicedStream, ticket: bytes) -> None:
        """Hand the connection over to the dialer that the ticket stands for, until they part."""
        with self._lock:
            good = self._relay.redeem(ticket, self._clock())
        guest = self._guests.get(ticket)
        if good and guest is not None and not guest.met.done():
            guest.met.set_result(stream)
            await guest.parted

    async def _give_up(self, ticket: bytes) -> None:
        """The peer that the dialer waits for is gone."""
        guest = self._guests.get(ticket)
        if guest is not None and not guest.met.done():
            guest.met.set_exception(ConnectionError("the peer is gone"))


def allow_connections(limits: RelayLimits) -> None:
    """Ask the system for the file descriptors that a router of these limits takes; three for a peer that registers."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 3 * limits.connections + 256
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, soft), hard))


def _listen(bind: str) -> socket.socket:
    host, port = split_address(bind)
    host = "0.0.0.0" if host == "*" else host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6()
        )
    except OSError as error:
        raise cannot_listen(bind, error) from None
