"""Who does not belong gets nothing through; who belongs cannot speak for others."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from routing import wire
from routing.directory.directory import Directory
from routing.links import Connected, Lost, Received
from routing.security import Identity, JoinToken
from tests.routing.material import Peer, server
from tests.swarm.live import MODEL, Live, directory, serving
from tests.swarm.toy import BLOCKS, greedy

PROMPT = [5, 17, 3, 42, 8]
SESSION = "5" * 32


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Directory]:
    with directory(tmp_path) as started:
        yield started


@pytest.fixture
def target(started: Directory) -> Iterator[Live]:
    with serving(started.token) as live:
        yield live


def member(started: Directory, target: Live) -> Peer:
    """Enrolled, and connected to the server."""
    peer = Peer.member_of(started)
    peer.dialer.dial(target.described.key, target.described.addresses)
    for event in peer.events():
        if isinstance(event, Connected) and event.peer == target.described.key:
            return peer
    raise AssertionError("unreachable")


def opening(
    target: Live, session: str = SESSION, epoch: int = 1, generation: wire.Generation | None = None
) -> wire.Open:
    hop = wire.Hop(target.described.key, target.described.addresses, 0, BLOCKS)
    return wire.Open(SESSION, epoch, MODEL, (hop,), 0, 64, 0, generation)


# --- those who do not belong ------------------------------------------------------------------------------------------


def test_a_key_that_was_never_enrolled_reaches_neither_server_nor_directory(started: Directory, target: Live) -> None:
    with Peer() as stranger:
        for key, addresses in (
            (target.described.key, target.described.addresses),
            (started.token.directory, started.token.addresses),
        ):
            stranger.dialer.dial(key, addresses)
            stranger.dialer.send(key, wire.Ping(1))
            for event in stranger.events():
                assert not isinstance(event, Received | Connected), event
                if isinstance(event, Lost):
                    assert event.reason == "refused" and event.peer == key
                    break
            stranger.dialer.hang_up(key)
    assert target.sessions == 0


def test_knowing_a_members_public_key_is_not_being_that_member(started: Directory, target: Live) -> None:
    with Peer.member_of(started) as victim:
        forged = Identity(victim.key, Identity.create().secret)  # its name, and some other secret
        with Peer(forged) as impostor:
            impostor.dialer.dial(target.described.key, target.described.addresses)
            impostor.dialer.send(target.described.key, opening(target))
            for event in impostor.events():
                assert not isinstance(event, Received | Connected), event
                if isinstance(event, Lost):
                    break
    assert target.sessions == 0


def test_the_tokens_secret_opens_no_servers_door(started: Directory, target: Live) -> None:
    with Peer(Identity.from_secret(started.token.secret)) as newcomer:
        newcomer.dialer.dial(target.described.key, target.described.addresses)
        assert newcomer.next(Lost).reason == "refused"


def test_somebody_elses_directory_under_the_right_address_is_not_trusted(started: Directory) -> None:
    token = started.token
    other = JoinToken(token.addresses, Identity.create().public, token.secret)
    with Peer(Identity.from_secret(token.secret)) as newcomer:
        newcomer.dialer.dial(other.directory, other.addresses)
        newcomer.dialer.send(other.directory, wire.Enrol(1, newcomer.key, "me"))
        for event in newcomer.events():
            assert not isinstance(event, Received | Connected), event
            if isinstance(event, Lost):
                assert event.reason == "refused"
                break


# --- replay ----------------------------------------------------------------------------------------------------------


class Tap:
    """A TCP proxy that writes down what the one who connects says."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard = b""
        self._threads = [threading.Thread(target=self._run, daemon=True)]
        self._threads[0].start()

    def _run(self) -> None:
        one, _ = self._listener.accept()
        other = socket.create_connection(self._target)
        back = threading.Thread(target=self._pass, args=(other, one, False), daemon=True)
        back.start()
        self._pass(one, other, True)
        back.join()

    def _pass(self, source: socket.socket, sink: socket.socket, listening: bool) -> None:
        try:
            while data := source.recv(65536):
                if listening:
                    self.heard += data
                sink.sendall(data)
        except OSError:
            pass  # the other side is gone
        finally:
            for each in (source, sink):
                with_shutdown(each)

    def close(self) -> None:
        self._listener.close()


def with_shutdown(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it was shut already


@contextmanager
def tapped(address: str) -> Iterator[Tap]:
    tap = Tap(address)
    try:
        yield tap
    finally:
        tap.close()


def test_a_recorded_session_said_again_byte_by_byte_changes_nothing(started: Directory, target: Live) -> None:
    key = target.described.key
    with tapped(target.described.addresses[0]) as tap, Peer.member_of(started) as victim:
        victim.dialer.dial(key, (tap.address,))
        assert victim.dialer.send(key, opening(target))
        assert isinstance(victim.next(wire.Opened, wire.Refused), wire.Opened)
        ids = np.array(PROMPT, np.int32)
        victim.dialer.send(key, wire.Forward(SESSION, 1, 0, 1, starts=(0,)), ids)
        assert victim.next(wire.Result, wire.Failed).position == len(PROMPT) - 1
        victim.dialer.send(key, wire.Close(SESSION))
        target.wait(lambda: target.sessions == 0)
        computed, recorded = target.stage.computed, tap.heard
        assert computed == len(PROMPT) and len(recorded) > 500
        assert SESSION.encode() not in recorded and MODEL.encode() not in recorded  # nothing of it can be read

        host, _, port = target.described.addresses[0].rpartition(":")
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=20) as again:
                again.sendall(recorded)
                while again.recv(65536):  # the server hangs up on it
                    continue
        # What the others say is still heard, and what was said again was not.
        assert isinstance(victim.ask(key, wire.Ping(1)), wire.Pong)
        assert target.stage.computed == computed and target.sessions == 0


# --- members that speak for others -----------------------------------------------------------------------------------


def test_another_members_session_cannot_be_taken_fed_or_closed(started: Directory, target: Live) -> None:
    key = target.described.key
    with member(started, target) as victim, member(started, target) as mallory:
        generation = wire.Generation(len(PROMPT), 64, wire.Sampling())
        victim.dialer.send(key, opening(target, generation=generation))
        assert isinstance(victim.next(wire.Opened, wire.Refused), wire.Opened)
        victim.dialer.send(key, wire.Forward(SESSION, 1, 0, 1, starts=(0,)), np.array(PROMPT, np.int32))
        tokens = []
        while len(tokens) < 64 - len(PROMPT):
            number = len(tokens)
            mallory.dialer.send(key, opening(target, epoch=5 + number))
            mallory.dialer.send(
                key,
                wire.Forward(SESSION, 1, number, 1, starts=(number,) if number % 2 == 0 else ()),
                np.array([1], np.int32),
            )
            mallory.dialer.send(key, wire.Close(SESSION))
            assert mallory.next(wire.Refused, wire.Opened).code in ("not_yours", "too_many")
            tokens.append(victim.next(wire.Token, wire.Failed).token)
        assert tokens == greedy(PROMPT, 64 - len(PROMPT))


def test_a_server_cannot_be_announced_under_another_key(started: Directory) -> None:
    with Peer.member_of(started) as victim, Peer.member_of(started) as mallory:
        honest, forged = server(victim.key), server(victim.key, addresses=("127.0.0.1:6666",))
        at = started.token.directory
        assert isinstance(victim.ask(at, wire.Announce(1, honest, 60)), wire.Done)
        for message in (wire.Announce(1, forged, 60), wire.Place(1, forged, 3, 60)):
            refused = mallory.ask(at, message)
            assert isinstance(refused, wire.Refused) and refused.code == "not_yours"
        mallory.ask(at, wire.Withdraw(1))  # of its own, which it has not
        watched = mallory.ask(at, wire.Watch(1))
        seen = {each.key: each for each in getattr(watched, "servers", ())}
        for event in mallory.events():
            if isinstance(event, Received) and isinstance(event.message, wire.Snapshot):
                seen.update({each.key: each for each in event.message.servers})
            if isinstance(event, Received) and isinstance(event.message, wire.Done):
                break
        assert seen[victim.key] == honest and mallory.key not in seen
