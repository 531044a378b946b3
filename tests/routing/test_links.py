from __future__ import annotations

import errno
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils.monitor import recv_monitor_message

from routing import wire
from routing.links import (
    Connected,
    Context,
    Dialer,
    LinkError,
    Listener,
    Lost,
    Received,
    cannot_listen,
    forbidden,
    split_address,
)
from routing.security import Identity, ZapAuthenticator
from tests.routing.material import PATIENCE, Peer, array_of

SERVER = Identity.create()


@contextmanager
def listening(admitted: set[str], bind: str = "127.0.0.1:0") -> Iterator[Listener]:
    """A listener behind a gate that admits the keys in `admitted`, also those that are put there later."""
    context: Context = zmq.Context()
    gate = ZapAuthenticator(context, admitted.__contains__)
    try:
        with closing(Listener(context, bind, SERVER)) as listener:
            yield listener
    finally:
        gate.close()
        context.term()


def receive(listener: Listener) -> Received:
    while listener.socket.poll(PATIENCE * 1000):
        received = listener.receive()
        if received is not None:  # what was dropped made the socket ready, too
            return received
    raise AssertionError("nothing came")


def dial(peer: Peer, listener: Listener, *others: str, key: str = SERVER.public) -> None:
    peer.dialer.dial(key, (*others, f"127.0.0.1:{listener.port}"))


def test_members_exchange_messages_and_know_who_sent_them() -> None:
    with Peer() as one, Peer() as other, listening({one.key, other.key}) as listener:
        array = array_of("bfloat16", (wire.CHUNK, 3))
        for peer in (one, other):
            dial(peer, listener)
            assert peer.dialer.send(SERVER.public, wire.Ping(1), array)  # also before it is connected
            assert peer.next(Connected) == Connected(SERVER.public)
            received = receive(listener)
            assert (received.peer, received.message) == (peer.key, wire.Ping(1))
            assert received.array is not None and received.array.tobytes() == array.tobytes()
            assert listener.send(received.route, wire.Pong(2), np.arange(3, dtype=np.int32))
            answer = peer.next(Received)
            assert (answer.peer, answer.message, answer.array.tolist()) == (SERVER.public, wire.Pong(2), [0, 1, 2])
        assert not listener.send(b"nobody", wire.Pong(3))


def test_a_peer_gets_in_only_once_the_gate_knows_its_key() -> None:
    admitted: set[str] = set()
    with Peer() as peer, Peer() as member, listening(admitted) as listener:
        dial(peer, listener)
        peer.dialer.send(SERVER.public, wire.Ping(1))
        for _ in range(3):
            assert peer.next(Lost, Connected) == Lost(SERVER.public, "refused")
        admitted.add(member.key)
        dial(member, listener)
        member.dialer.send(SERVER.public, wire.Ping(2))
        member.next(Connected)
        assert receive(listener).peer == member.key  # nothing came through before
        admitted.add(peer.key)
        peer.next(Connected)
        assert receive(listener).peer == peer.key


@pytest.mark.parametrize("mechanism", ["null", "plain"])
def test_no_connection_is_unencrypted(mechanism: str) -> None:
    context: Context = zmq.Context()
    with Peer() as member, listening({member.key}) as listener, context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        if mechanism == "plain":
            dealer.plain_username, dealer.plain_password = b"peer", b"word"
        with dealer.get_monitor_socket(zmq.EVENT_ALL) as monitor:
            dealer.connect(f"tcp://127.0.0.1:{listener.port}")
            with suppress(zmq.Again):  # refused so soon that there is nothing to send on
                dealer.send_multipart([bytes(frame) for frame in wire.encode(wire.Ping(1))], zmq.NOBLOCK)
            seen: set[int] = set()
            while not seen & {zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED}:
                assert monitor.poll(PATIENCE * 1000)
                seen.add(recv_monitor_message(monitor)["event"])
            assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in seen
            dealer.disable_monitor()
        dial(member, listener)
        member.dialer.send(SERVER.public, wire.Ping(2))
        member.next(Connected)
        assert receive(listener).message == wire.Ping(2)
        assert not dealer.poll(0)


def test_a_damaged_message_is_dropped_and_the_next_one_taken(caplog: pytest.LogCaptureFixture) -> None:
    with Peer() as peer, listening({peer.key}) as listener:
        dial(peer, listener)
        peer.next(Connected)
        peer.dialer._links[SERVER.public].socket.send_multipart([b"noise", b"more"])
        peer.dialer.send(SERVER.public, wire.Ping(1))
        with caplog.at_level(logging.WARNING):
            assert receive(listener).message == wire.Ping(1)
        assert "protocol version" in caplog.text


def test_a_frame_over_the_limit_ends_the_connection_of_its_sender_only() -> None:
    with Peer() as peer, Peer() as other, listening({peer.key, other.key}) as listener:
        for each in (peer, other):
            dial(each, listener)
            each.next(Connected)
        peer.dialer._links[SERVER.public].socket.send(bytes(wire.MAX_FRAME + 1))
        assert peer.next(Lost) == Lost(SERVER.public, "closed")
        other.dialer.send(SERVER.public, wire.Ping(1))
        assert receive(listener).peer == other.key


def test_whoever_answers_in_the_place_of_a_peer_is_found_out() -> None:
    with Peer() as peer, listening({peer.key}) as listener:
        somebody_else = Identity.create().public
        dial(peer, listener, key=somebody_else)
        assert peer.next(Lost, Connected) == Lost(somebody_else, "refused", impostor=True)


def test_addresses_are_tried_in_turn_until_the_peer_is_found() -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as web,
        closing(socket.create_server(("127.0.0.1", 0))) as gone,
        Peer() as peer,
        listening({peer.key}) as listener,
    ):
        threading.Thread(target=answer_like_a_web_server, args=(web,), daemon=True).start()
        closed = gone.getsockname()[1]
        gone.close()
        dial(peer, listener, f"127.0.0.1:{web.getsockname()[1]}", f"127.0.0.1:{closed}")
        assert peer.next(Lost, Connected) == Lost(SERVER.public, "refused", impostor=True)
        assert peer.next(Lost, Connected) == Lost(SERVER.public, "unreachable")
        assert peer.next(Lost, Connected) == Connected(SERVER.public)


def answer_like_a_web_server(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection, suppress(ConnectionError):
        connection.recv(64)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" + bytes(100))
        connection.recv(64)


def test_a_lost_peer_is_noticed_and_found_again_without_what_was_sent_before() -> None:
    with Peer() as peer:
        with listening({peer.key}) as listener:
            port = listener.port
            dial(peer, listener)
            peer.next(Connected)
        assert peer.next(Lost) == Lost(SERVER.public, "closed")
        assert not peer.dialer.is_up(SERVER.public)
        with listening({peer.key}, f"127.0.0.1:{port}") as listener:
            peer.next(Connected)
            peer.dialer.send(SERVER.public, wire.Ping(2))
            assert receive(listener).message == wire.Ping(2)
        peer.dialer.hang_up(SERVER.public)
        assert not peer.dialer.send(SERVER.public, wire.Ping(3))


def test_a_peer_that_is_wanted_again_is_dialled_anew_and_then_left_alone() -> None:
    with Peer() as peer:
        with listening({peer.key}) as listener:
            port = listener.port
            dial(peer, listener)
            peer.next(Connected)
        while peer.next(Lost).reason != "unreachable":
            pass
        with listening({peer.key}, f"127.0.0.1:{port}") as listener:
            for number in range(3):  # also while the connection is being made, and when it is there
                dial(peer, listener)
                assert peer.dialer.send(SERVER.public, wire.Ping(number))
            peer.next(Connected)
            for number in range(3, 6):
                dial(peer, listener)
                assert peer.dialer.send(SERVER.public, wire.Ping(number))
            assert [receive(listener).message for _ in range(6)] == [wire.Ping(number) for number in range(6)]
            assert not any(isinstance(event, Lost) for event in [*peer.unread, *peer.dialer.collect()])


def test_whom_the_swarm_has_expelled_is_hung_up_on_and_sent_nothing() -> None:
    expelled: set[str] = set()
    with Peer() as peer:
        peer.dialer = Dialer(peer.context, peer.identity, peer.poller, expelled=expelled.__contains__)
        with listening({peer.key}) as listener:
            dial(peer, listener)
            peer.next(Connected)
            expelled.add(SERVER.public)
            assert peer.next(Lost, Received) == Lost(SERVER.public, "closed")
            assert SERVER.public not in peer.dialer
            dial(peer, listener)
            peer.dialer.send(SERVER.public, wire.Ping(1))
            assert peer.next(Lost, Connected) == Lost(SERVER.public, "refused")
            assert not peer.dialer.send(SERVER.public, wire.Ping(2))
            expelled.clear()
            dial(peer, listener)
            peer.dialer.send(SERVER.public, wire.Ping(3))
            peer.next(Connected)
            assert receive(listener).message == wire.Ping(3)


def test_a_port_in_use_is_one_clear_line() -> None:
    with listening(set()) as listener:
        with pytest.raises(LinkError, match=f"port {listener.port} on 127.0.0.1 is in use: choose another"):
            Listener(listener.socket.context, f"127.0.0.1:{listener.port}", SERVER)
        with pytest.raises(LinkError, match=r"cannot listen on 192\.0\.2\.1:0"):
            Listener(listener.socket.context, "192.0.2.1:0", SERVER)


@pytest.mark.parametrize("number", [errno.EACCES, 10013])
def test_a_port_that_the_system_keeps_is_explained(number: int) -> None:
    assert "port 7700 on 0.0.0.0 is " in str(cannot_listen("0.0.0.0:7700", OSError(number, "denied")))
    assert "netsh interface ipv4 show excludedportrange protocol=tcp" in forbidden(windows=True)
    assert "above 1023" in forbidden(windows=False)


@given(st.text(max_size=20))
def test_an_address_is_split_or_refused(text: str) -> None:
    try:
        host, port = split_address(text)
    except LinkError as error:
        assert "HOST:PORT" in str(error)
    else:
        assert host is not None and 0 <= port <= 65535


def test_addresses_of_version_six_are_split() -> None:
    assert split_address("[::1]:7700") == ("::1", 7700)
    assert split_address("example.org:0") == ("example.org", 0)
