"""Peers that nobody can dial, reached through real routers over real sockets."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import wire
from routing.client import DirectoryClient, DirectoryError
from routing.links import Connected, Context, LinkError, Listener, Lost, Received
from routing.relay.agent import RelayAgent
from routing.relay.rules import JOINED, ZMTP, Preamble, RelayLimits, name_of, relay_address
from routing.relay.server import RelayServer
from routing.relay.splice import LIMIT, Background, SplicedStream, close, connect, serve
from routing.security import Identity, ZapAuthenticator
from swarm.server.rate_limits import FloodGuard
from tests.routing.material import KEYS, PATIENCE, Peer, directory_in, server
from tests.routing.material import running as at_work

NOWHERE = "127.0.0.1:1"  # nobody listens on port 1
Change = Callable[[bytes, int, bool], bytes]  # what to send on for bytes, the number of the first, whether to the peer


class Hidden:
    """A peer that listens where nobody finds it, and answers a Ping with what it was sent."""

    def __init__(
        self, admitted: set[str], routers: dict[str, wire.RouterInfo], identity: Identity | None = None
    ) -> None:
        self.identity = identity or Identity.create()
        self.key = self.identity.public
        admitted.add(self.key)
        self.received: list[Received] = []
        self._stop = threading.Event()
        self._resources = ExitStack()
        context: Context = zmq.Context()
        self._resources.callback(context.term)
        self._resources.callback(ZapAuthenticator(context, admitted.__contains__).close)
        self.listener = self._resources.enter_context(closing(Listener(context, "127.0.0.1:0", self.identity)))
        self.agent = RelayAgent(lambda: routers, self.identity, "0.0.0.0", self.listener.port)
        self._resources.callback(self.agent.close)
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        while not self._stop.is_set():
            self.listener.socket.poll(20)
            while (received := self.listener.receive()) is not None:
                self.received.append(received)
                if isinstance(received.message, wire.Ping):
                    self.listener.send(received.route, wire.Pong(received.message.request), received.array)

    def __enter__(self) -> Hidden:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._resources.close()

    def addresses(self, routers: int = 1) -> tuple[str, ...]:
        """As announced once it has registered at as many routers; the direct one leads nowhere."""
        wait_until(lambda: len(self.agent.reachable(())) == routers)
        return self.agent.reachable((NOWHERE,))


def wait_until(predicate: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not predicate():
        assert time.monotonic() < until, "what the test waits for did not happen"
        pause.wait(0.01)


@contextmanager
def running(
    admitted: set[str], bind: str = "127.0.0.1:0", identity: Identity | None = None, **options: Any
) -> Iterator[RelayServer]:
    """A router at work in a thread."""
    identity = identity or Identity.create()
    admitted.add(identity.public)
    stop = threading.Event()
    with RelayServer(bind, identity, admitted.__contains__, **options) as router:
        thread = threading.Thread(target=router.run, args=(stop,), name="router-owner")
        thread.start()
        try:
            yield router
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def admitted() -> set[str]:
    return set()


@pytest.fixture
def router(admitted: set[str]) -> Iterator[RelayServer]:
    with running(admitted) as router:
        yield router


def listed(*routers: RelayServer) -> dict[str, wire.RouterInfo]:
    return {router.entry("").key: router.entry("router") for router in routers}


def member(admitted: set[str]) -> Peer:
    peer = Peer()
    admitted.add(peer.key)
    return peer


def exchange(peer: Peer, other: str) -> None:
    """A message with more than one frame of tensor, there and back."""
    array = np.arange(3 << 18, dtype=np.float32)
    assert peer.dialer.send(other, wire.Ping(7), array)
    answer = peer.next(Received)
    assert answer.message == wire.Pong(7) and np.array_equal(answer.array, array)


class Meddler:
    """Sits before a router and passes on what it wants: a router that does what it likes with the bytes."""

    def __init__(self, router: RelayServer, change: Change = lambda data, at, outward: data) -> None:
        self.seen: list[bytes] = []
        self._port = int(router.addresses[0].rpartition(":")[2])
        self._change = change
        self._background = Background("meddler")
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{listening.getsockname()[1]}"
        self._background.start(serve(listening, self._pass_on))

    async def _pass_on(self, here: SplicedStream) -> None:
        there = await connect("127.0.0.1", self._port, PATIENCE)
        ways = [self._carry(here, there, True), self._carry(there, here, False)]
        await asyncio.wait(map(asyncio.create_task, ways), return_when=asyncio.FIRST_COMPLETED)
        await close(there)

    async def _carry(self, source: SplicedStream, sink: SplicedStream, outward: bool) -> None:
        at = 0
        while data := await source.reader.read(LIMIT):
            self.seen.append(data)
            sink.writer.write(self._change(data, at, outward))
            await sink.writer.drain()
            at += len(data)

    def __enter__(self) -> Meddler:
        return self

    def __exit__(self, *_: object) -> None:
        self._background.close()


def test_everybody_in_the_swarm_hears_of_a_router(tmp_path: Path) -> None:
    with at_work(directory_in(tmp_path)) as directory:
        identity = Identity.create()
        entry = wire.RouterInfo(identity.public, "door", ("10.0.0.1:7701",))
        with DirectoryClient(directory.token, Identity.create(), "early") as early:
            with DirectoryClient(directory.token, identity, "door") as client:
                client.announce(entry)
                early.wait_for(lambda view: view.routers == {entry.key: entry}, PATIENCE)
                with DirectoryClient(directory.token, Identity.create(), "late") as late:
                    assert late.view.routers == {entry.key: entry}
                with pytest.raises(DirectoryError, match="its own key"):
                    client.announce(msgspec.structs.replace(entry, key=KEYS[0]))
                with pytest.raises(DirectoryError, match="could dial"):
                    client.announce(msgspec.structs.replace(entry, addresses=(relay_address("10.0.0.1:1", KEYS[0]),)))
                with pytest.raises(DirectoryError, match="is a router"):
                    client.announce(server(identity.public))
            early.wait_for(lambda view: not view.routers, PATIENCE)


def test_a_peer_that_nobody_can_dial_is_reached_through_the_router(admitted: set[str], router: RelayServer) -> None:
    with Hidden(admitted, listed(router)) as hidden, member(admitted) as peer:
        peer.dialer.dial(hidden.key, hidden.addresses())
        assert peer.next(Lost, Connected) == Lost(hidden.key, "unreachable")
        assert peer.next(Lost, Connected) == Connected(hidden.key)
        assert peer.dialer.relayed(hidden.key)
        exchange(peer, hidden.key)
        assert [received.peer for received in hidden.received] == [peer.key]
        peer.dialer.hang_up(hidden.key)
        peer.dialer.dial(hidden.key, hidden.addresses())
        assert peer.next(Lost, Connected) == Connected(hidden.key)  # known to be worth a try first


def test_the_direct_way_is_taken_where_there_is_one(admitted: set[str], router: RelayServer) -> None:
    with Hidden(admitted, listed(router)) as hidden, member(admitted) as peer:
        _, relayed = hidden.addresses()
        peer.dialer.dial(hidden.key, (f"127.0.0.1:{hidden.listener.port}", relayed))
        assert peer.next(Lost, Connected) == Connected(hidden.key)
        assert not peer.dialer.relayed(hidden.key)
        exchange(peer, hidden.key)
        assert not router._guests


def test_only_members_get_through_and_only_members_register(admitted: set[str], router: RelayServer) -> None:
    with Hidden(admitted, listed(router)) as hidden, Peer() as stranger:
        stranger.dialer.dial(hidden.key, hidden.addresses()[1:])
        assert stranger.next(Lost, Connected) == Lost(hidden.key, "refused")
        stranger.dialer.dial(router.entry("").key, router.addresses)
        stranger.dialer.send(router.entry("").key, wire.Register(1))
        assert stranger.next(Lost, Connected).reason == "refused"
        admitted.add(stranger.key)
        stranger.next(Connected)
        admitted.remove(hidden.key)  # expelled, and still connected to the router
        with member(admitted) as peer:
            peer.dialer.dial(hidden.key, hidden.addresses()[1:])
            assert peer.next(Lost, Connected) == Lost(hidden.key, "unreachable")


def test_the_router_sees_nothing_of_what_it_carries(admitted: set[str], router: RelayServer) -> None:
    secret = b"a sentence that is for nobody else"
    with Hidden(admitted, listed(router)) as hidden, member(admitted) as peer, Meddler(router) as meddler:
        hidden.addresses()
        peer.dialer.dial(hidden.key, (relay_address(meddler.address, hidden.key),))
        array = np.frombuffer(secret * 1000, np.uint8)
        peer.dialer.send(hidden.key, wire.Ping(1), array)
        assert peer.next(Received).array.tobytes() == array.tobytes()
        carried = b"".join(meddler.seen)
        assert len(carried) > 2 * len(array)
        for known in (secret, peer.key.encode(), peer.identity.secret, hidden.identity.secret):
            assert known not in carried


# In the greeting, the handshake (twice) and a message.
@pytest.mark.parametrize(
    ("outward", "offset"), [*((True, at) for at in (38, 190, 364, 2064)), *((False, at) for at in (14, 190, 270, 2064))]
)
def test_a_router_that_changes_a_byte_delivers_nothing(
    outward: bool, offset: int, admitted: set[str], router: RelayServer
) -> None:
    def flip(data: bytes, at: int, to_peer: bool) -> bytes:
        where = offset - at
        damaged = to_peer == outward and 0 <= where < len(data)
        return data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :] if damaged else data

    with Hidden(admitted, listed(router)) as hidden, member(admitted) as peer, Meddler(router, flip) as meddler:
        hidden.addresses()
        peer.dialer.dial(hidden.key, (relay_address(meddler.address, hidden.key),))
        peer.dialer.send(hidden.key, wire.Ping(1), np.zeros(4096, np.uint8))
        assert isinstance(peer.next(Lost, Received), Lost)
        assert not (hidden.received and outward)
        peer.next(Lost, Connected)  # it goes on trying


@pytest.mark.skipif(sys.platform == "win32", reason="libzmq would end the process; what is sent is dropped there")
def test_who_floods_the_router_is_put_out(admitted: set[str]) -> None:
    floods = FloodGuard(time.monotonic, rate=10, burst=50)
    with running(admitted, heard=floods.admit_message) as router, member(admitted) as flooder:
        here = router.entry("").key
        with Hidden(admitted, listed(router)) as hidden, member(admitted) as peer:
            flooder.dialer.dial(here, router.addresses)
            flooder.next(Connected)
            for request in range(100):
                flooder.dialer.send(here, wire.Register(request))
            assert flooder.next(Lost) == Lost(here, "closed")
            peer.dialer.dial(hidden.key, hidden.addresses())
            peer.next(Connected)


def test_a_router_that_answers_itself_is_found_out(admitted: set[str]) -> None:
    """It claims to have joined us to the peer, and speaks CURVE with a key of its own."""
    wanted = Identity.create().public
    with Hidden(admitted, {}) as forger, member(admitted) as peer:

        async def pretend(stream: SplicedStream) -> None:
            await stream.reader.readexactly(len(bytes(Preamble("dial", name_of(wanted)))))
            stream.writer.write(JOINED)
            there = await connect("127.0.0.1", forger.listener.port, PATIENCE)
            while data := await stream.reader.read(LIMIT):
                there.writer.write(data)
                stream.writer.write(await there.reader.read(LIMIT))

        listening = socket.create_server(("127.0.0.1", 0))
        with closing(Background("forger")) as background:
            background.start(serve(listening, pretend))
            peer.dialer.dial(wanted, (relay_address(f"127.0.0.1:{listening.getsockname()[1]}", wanted),))
            peer.dialer.send(wanted, wire.Ping(1))
            assert peer.next(Lost, Connected) == Lost(wanted, "refused", impostor=True)
            assert not forger.received


def test_nobody_takes_the_place_of_another_peer(admitted: set[str], router: RelayServer) -> None:
    """A registration is for the key that the connection was authenticated with."""
    here = router.entry("").key
    with Hidden(admitted, listed(router)) as hidden, member(admitted) as thief, member(admitted) as peer:
        relayed = hidden.addresses()[1:]
        thief.dialer.dial(here, router.addresses)
        assert isinstance(thief.ask(here, wire.Register(0)), wire.Done)
        peer.dialer.dial(hidden.key, relayed)
        peer.next(Connected)
        exchange(peer, hidden.key)
        assert not any(isinstance(event, Received) for event in thief.dialer.collect())
        peer.dialer.dial(thief.key, (relay_address(router.addresses[0], thief.key),))
        assert isinstance(thief.next(wire.Caller), wire.Caller)


def test_a_lost_router_comes_back_under_the_same_address(admitted: set[str]) -> None:
    identity = Identity.create()
    routers: dict[str, wire.RouterInfo] = {}
    with ExitStack() as stack, Hidden(admitted, routers) as hidden, member(admitted) as peer:
        first = stack.enter_context(running(admitted, identity=identity))
        address = first.addresses[0]
        routers.update(listed(first))
        addresses = hidden.addresses()
        peer.dialer.dial(hidden.key, addresses[1:])
        peer.next(Connected)
        stack.close()
        assert peer.next(Lost) == Lost(hidden.key, "closed")
        wait_until(lambda: not hidden.agent.reachable(()))
        assert peer.next(Lost) == Lost(hidden.key, "unreachable")
        with running(admitted, address, identity):
            assert hidden.addresses() == addresses
            peer.next(Connected)
            exchange(peer, hidden.key)


def test_the_loss_of_one_router_leaves_another_way(admitted: set[str], router: RelayServer) -> None:
    with running(admitted) as other, ExitStack() as third, member(admitted) as peer:
        doomed = third.enter_context(running(admitted))
        with Hidden(admitted, listed(doomed, other)) as hidden:
            addresses = hidden.addresses(2)
            at = relay_address(doomed.addresses[0], hidden.key)
            peer.dialer.dial(hidden.key, (at, *(address for address in addresses[1:] if address != at)))
            peer.next(Connected)
            third.close()
            assert peer.next(Lost) == Lost(hidden.key, "closed")
            peer.next(Connected)
            exchange(peer, hidden.key)
            assert peer.dialer.address(hidden.key) == relay_address(other.addresses[0], hidden.key)


def test_new_addresses_cut_no_connection_that_works(admitted: set[str], router: RelayServer) -> None:
    with Hidden(admitted, listed(router)) as hidden, member(admitted) as peer:
        addresses = hidden.addresses()
        peer.dialer.dial(hidden.key, (NOWHERE, "nonsense:!", addresses[1]))
        peer.next(Connected)
        peer.dialer.dial(hidden.key, (NOWHERE,))
        exchange(peer, hidden.key)
        assert peer.dialer.relayed(hidden.key)


def raw(router: RelayServer) -> socket.socket:
    host, _, port = router.addresses[0].rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_whatever_strangers_send_does_no_harm(admitted: set[str]) -> None:
    limits = RelayLimits(patience=0.05)
    with running(admitted, hurry=0.05, limits=limits) as router, Hidden(admitted, listed(router)) as hidden:
        relayed = hidden.addresses()[1:]
        names = st.sampled_from([name_of(hidden.key), name_of(router.entry("").key), bytes(16)])
        preambles = st.builds(
            Preamble, st.sampled_from(["dial", "ticket"]), names | st.binary(min_size=16, max_size=16)
        )
        noise = st.binary(max_size=200)
        starts = st.just(ZMTP) | preambles.map(bytes) | preambles.map(lambda preamble: bytes(preamble)[:-1]) | noise

        @settings(max_examples=150)
        @given(st.tuples(starts, noise).map(b"".join), st.booleans())
        def nothing_happens(sent: bytes, leaves: bool) -> None:
            with raw(router) as connection:
                connection.sendall(sent)
                if leaves:
                    connection.shutdown(socket.SHUT_WR)

        nothing_happens()
        # What is left are the connections of the peer that has registered: its own, and nobody's guest.
        wait_until(lambda: not router._guests and not router._relay._waiting and router._relay._connections == 1)
        assert not router._relay._dialers
        with member(admitted) as peer:
            peer.dialer.dial(hidden.key, relayed)
            peer.next(Connected)
            exchange(peer, hidden.key)
        assert len(hidden.received) == 1


def test_a_connection_that_says_nothing_is_cut(admitted: set[str]) -> None:
    with running(admitted, hurry=0.05) as router:
        for beginning in (b"", b"S", bytes(Preamble("dial", bytes(16)))[:-1]):
            with raw(router) as connection:
                connection.sendall(beginning)
                assert ended(connection)


def test_a_source_has_no_more_than_its_share(admitted: set[str]) -> None:
    with running(admitted, limits=RelayLimits(per_source=3)) as router, ExitStack() as stack:
        held = [stack.enter_context(raw(router)) for _ in range(3)]
        wait_until(lambda: router._relay._connections == 3)
        with raw(router) as one_too_many:
            assert ended(one_too_many)
        held[0].close()
        wait_until(lambda: router._relay._connections == 2)
        with raw(router):
            wait_until(lambda: router._relay._connections == 3)


@contextmanager
def joined(router: RelayServer, peer: Peer) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two plain connections that the router has joined: a dialer's, and the one of `peer`."""
    here = router.entry("").key
    peer.dialer.dial(here, router.addresses)
    assert isinstance(peer.ask(here, wire.Register(0)), wire.Done)
    with raw(router) as dialer, raw(router) as answer:
        dialer.sendall(bytes(Preamble("dial", name_of(peer.key))))
        ticket = peer.next(wire.Caller).ticket
        answer.sendall(bytes(Preamble("ticket", ticket)))
        assert dialer.recv(1) == answer.recv(1) == JOINED
        with raw(router) as again:
            again.sendall(bytes(Preamble("ticket", ticket)))
            assert ended(again)  # a ticket is good once
        yield dialer, answer


def test_a_peer_that_does_not_read_stops_the_one_that_writes(admitted: set[str], router: RelayServer) -> None:
    with member(admitted) as peer, joined(router, peer) as (dialer, answer):
        dialer.settimeout(0.5)
        sent, block = 0, bytes(1 << 20)
        with pytest.raises(TimeoutError):
            while sent < 1 << 28:
                sent += dialer.send(block)
        assert sent < 64 << 20  # the buffers of the system, mostly
        answer.close()
        assert ended(dialer)


def test_a_connection_on_which_nothing_moves_is_cut(admitted: set[str]) -> None:
    with running(admitted, idle=0.3) as router, member(admitted) as peer, joined(router, peer) as (dialer, answer):
        dialer.sendall(b"hello")
        assert answer.recv(5) == b"hello"
        assert ended(answer) and ended(dialer)


def test_a_port_in_use_is_one_clear_line(admitted: set[str], router: RelayServer) -> None:
    address = router.addresses[0]
    with pytest.raises(LinkError, match=f"port {address.rpartition(':')[2]} on 127.0.0.1 is in use: choose another"):
        RelayServer(address, Identity.create(), admitted.__contains__)
    with pytest.raises(LinkError, match=r"cannot listen on 198\.51\.100\.1:0"):
        RelayServer("198.51.100.1:0", Identity.create(), admitted.__contains__)


def test_a_call_that_nobody_answers_ends(admitted: set[str]) -> None:
    with running(admitted, limits=RelayLimits(patience=0.1)) as router, member(admitted) as peer:
        here = router.entry("").key
        peer.dialer.dial(here, router.addresses)
        peer.ask(here, wire.Register(0))
        with raw(router) as dialer:
            dialer.sendall(bytes(Preamble("dial", name_of(peer.key))))
            ticket = peer.next(wire.Caller).ticket
            assert ended(dialer)
        with raw(router) as late:
            late.sendall(bytes(Preamble("ticket", ticket)))
            assert ended(late)
