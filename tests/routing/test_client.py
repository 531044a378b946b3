"""Peers, their directory, and what happens when one of them goes away."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import zmq

from routing import wire
from routing.client import DirectoryClient, DirectoryError, View
from routing.directory.directory import Directory
from routing.links import Connected, Context, Listener, Lost
from routing.security import Identity, JoinToken, ZapAuthenticator
from tests.routing.material import KEYS, PATIENCE, Clock, Peer, running, server, unnumbered

QUICK = PATIENCE / 2  # s; within this it is plain that a timeout of `PATIENCE` was not waited for


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with running(Directory("127.0.0.1:0", tmp_path / "directory")) as directory:
        yield directory


@pytest.fixture
def join(directory: Directory) -> Iterator[Callable[..., DirectoryClient]]:
    """Starts clients of the directory and closes them at the end."""
    with ExitStack() as clients:

        def start(identity: Identity | None = None, **options: object) -> DirectoryClient:
            client = DirectoryClient(directory.token, identity or Identity.create(), "peer", **options)  # type: ignore[arg-type]
            client.start()
            clients.callback(client.close)
            return client

        yield start


Join = Callable[..., DirectoryClient]


def own(client: DirectoryClient, start: int = 0, end: int = 12, **fields: object) -> wire.ServerInfo:
    return server(client._identity.public, start, end, **fields)


# --- joining ---------------------------------------------------------------------------------------------------------


def test_a_newcomer_is_enrolled_once_and_known_to_all(directory: Directory, join: Join) -> None:
    identity = Identity.create()
    first, other = join(identity), join()
    assert first.admits(identity.public)
    other.wait_for(lambda view: identity.public in view.members, PATIENCE)
    assert not other.admits(Identity.create().public)
    first.close()
    enrolled = other.view.members[identity.public].enrolled
    assert join(identity).view.members[identity.public].enrolled == enrolled


def refusal_of(token: JoinToken, identity: Identity | None = None, timeout: float = PATIENCE) -> str:
    """The line with which a client does not start. It must come without waiting for long, and no thread may stay."""
    before = set(threading.enumerate())
    began = time.monotonic()
    with pytest.raises(DirectoryError) as caught:
        DirectoryClient(token, identity or Identity.create(), "peer", timeout=timeout).start()
    assert time.monotonic() - began < QUICK
    assert "\n" not in str(caught.value)
    assert set(threading.enumerate()) <= before
    return str(caught.value)


def test_a_wrong_token_is_refused_at_once_with_a_clear_line(directory: Directory) -> None:
    token = directory.token
    other_secret = JoinToken(token.addresses, token.directory, Identity.create().secret)
    assert "wrong, has expired or was revoked" in refusal_of(other_secret)
    other_directory = JoinToken(token.addresses, Identity.create().public, token.secret)
    assert f"what answers at {directory.address} is not the directory of this join token" in refusal_of(other_directory)
    nonsense = JoinToken(("nowhere",), token.directory, token.secret)
    assert "no directory that could be dialled" in refusal_of(nonsense)
    assert "no directory that could be dialled" in refusal_of(JoinToken(token.addresses, token.directory, b"secret"))


def test_an_expired_token_lets_in_only_who_has_enrolled_before(tmp_path: Path) -> None:
    clock = Clock()
    with running(Directory("127.0.0.1:0", tmp_path, token_ttl=60, clock=clock)) as directory:
        identity = Identity.create()
        with DirectoryClient(directory.token, identity, "early"):
            pass
        clock.now += 60
        assert "the join token expired on" in refusal_of(directory.token)
        with DirectoryClient(directory.token, identity, "early") as again:
            assert again.admits(identity.public)


def test_nobody_at_the_address_is_a_clear_line() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    token = JoinToken((f"127.0.0.1:{port}",), Identity.create().public, Identity.create().secret)
    line = refusal_of(token, timeout=1.0)
    assert line.startswith(f"no directory answers at 127.0.0.1:{port}: is swarm-directory running there")
    assert "firewall" in line


def test_the_addresses_of_a_token_are_alternatives(directory: Directory) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    token = directory.token
    several = JoinToken((f"127.0.0.1:{port}", *token.addresses), token.directory, token.secret)
    with DirectoryClient(several, Identity.create(), "peer") as client:
        assert len(client.view.members) == 1


def test_a_directory_that_cannot_save_a_newcomer_tells_it_so(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("routing.directory.store.os.fsync", full)
    assert "does not let this machine in: the directory cannot save its members" in refusal_of(directory.token)


# --- serving ---------------------------------------------------------------------------------------------------------


def test_what_a_server_announces_is_seen_by_all_and_ends_with_it(directory: Directory, join: Join) -> None:
    seen: list[View] = []
    one, two, watcher = join(), join(), join(on_change=seen.append)
    assert one.place(own(one), 6) == (0, 6)
    one.announce(own(one, 0, 6, state="joining"))
    assert two.place(own(two), 6) == (6, 12)
    two.announce(own(two, 6, 12))
    watcher.wait_for(lambda view: len(view.servers) == 2, PATIENCE)
    one.update(own(one, 0, 6, kv_free=7))
    view = watcher.wait_for(lambda view: any(s.load.kv_free == 7 for s in view.servers.values()), PATIENCE)
    assert unnumbered(view) == {s.key: s for s in (own(one, 0, 6, kv_free=7), own(two, 6, 12))}
    assert view.serving("toy") and not view.serving("other")
    one.withdraw()
    watcher.wait_for(lambda view: len(view.servers) == 1, PATIENCE)
    one.update(own(one))  # nothing is announced, so nothing is replaced
    two.close()
    assert not watcher.wait_for(lambda view: not view.servers, PATIENCE).servers
    assert seen[-1] == watcher.view
    with pytest.raises(TimeoutError, match="within 0 s"):
        watcher.wait_for(lambda view: bool(view.servers), 0)


def test_a_refusal_reaches_the_server_with_the_reason(directory: Directory, join: Join) -> None:
    one, two = join(), join()
    one.announce(own(one, fingerprint={"config.json": "1"}))
    with pytest.raises(DirectoryError, match=r"config\.json differs.*--model-name") as caught:
        two.announce(own(two, fingerprint={"config.json": "2"}))
    assert caught.value.code == "conflict"
    with pytest.raises(DirectoryError, match="its own key"):
        two.announce(own(one))
    with pytest.raises(DirectoryError, match="its own key"):
        two.place(own(one), 3)
    with pytest.raises(DirectoryError, match="cannot be announced: Expected `int` >= 0"):
        two.announce(own(two, kv_free=-1))
    two.announce(own(two, model="toy-2"))


def test_load_is_reported_at_a_measured_pace_and_everything_else_at_once(directory: Directory) -> None:
    clock = Clock()
    with (
        DirectoryClient(directory.token, Identity.create(), "one", clock=clock) as one,
        Peer.member_of(directory) as ear,
    ):
        one.announce(own(one))
        assert isinstance(ear.ask(directory.token.directory, wire.Watch(0)), wire.Snapshot)
        for free in range(900, 800, -1):
            one.update(own(one, kv_free=free))
        one.update(own(one, state="draining", kv_free=800))
        heard = ear.next(wire.Change).event.server
        assert heard == own(one, state="draining", kv_free=800, revision=heard.revision)
        one.update(own(one, state="draining", kv_free=700))
        one.update(own(one, state="draining", kv_free=600))
        one.place(own(one), 3)  # answered after the updates were taken in; the clock stands still
        clock.now += 1
        assert ear.next(wire.Change).event.server.load.kv_free == 600


def test_a_lease_is_renewed_while_its_server_is_busy(tmp_path: Path) -> None:
    """Both clocks are the test's: the server's is moved as far as the directory's."""
    ticks, clock = Clock(), Clock()
    with (
        running(Directory("127.0.0.1:0", tmp_path, ticks=ticks)) as directory,
        DirectoryClient(directory.token, Identity.create(), "server", clock=clock) as busy,
        Peer.member_of(directory) as silent,
        Peer.member_of(directory) as watcher,
    ):
        busy.announce(own(busy))
        silent.ask(directory.token.directory, wire.Announce(0, server(silent.key), 15))
        watcher.ask(directory.token.directory, wire.Watch(0))
        renewed = threading.Event()
        announce = directory._registry.announce

        def noted(*args: object) -> object:
            renewed.set()
            return announce(*args)  # type: ignore[arg-type]

        directory._registry.announce = noted  # type: ignore[method-assign, assignment]
        for _ in range(4):
            renewed.clear()
            ticks.now += 5
            clock.now += 5
            busy.update(own(busy))  # the same; only wakes the thread
            assert renewed.wait(PATIENCE)
        assert watcher.next(wire.Change).event == wire.PeerGone(silent.key, "its lease ran out")
        assert set(directory._registry.view.servers) == {busy._identity.public}


def test_a_server_admits_a_peer_that_enrolled_after_it_started(directory: Directory, join: Join) -> None:
    host = join()
    context: Context = zmq.Context()
    gate = ZapAuthenticator(context, host.admits)
    try:
        with closing(Listener(context, "127.0.0.1:0", host._identity)) as listener, Peer() as stranger:
            address = f"127.0.0.1:{listener.port}"
            stranger.dialer.dial(host._identity.public, (address,))
            assert stranger.next(Connected, Lost) == Lost(host._identity.public, "refused")
            with Peer.member_of(directory) as newcomer:
                newcomer.dialer.dial(host._identity.public, (address,))
                newcomer.next(Connected)
                newcomer.dialer.send(host._identity.public, wire.Ping(1))
                assert listener.socket.poll(PATIENCE * 1000)
                received = listener.receive()
                assert received is not None and received.peer == newcomer.key
    finally:
        gate.close()
        context.term()


# --- losing the directory --------------------------------------------------------------------------------------------


def test_a_restarted_directory_finds_its_members_and_servers_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "routing.membership.directory_link")
    with ExitStack() as clients:
        with running(Directory("127.0.0.1:0", tmp_path)) as first:
            # Its clock stands still: it does not announce because a renewal is due.
            one = clients.enter_context(DirectoryClient(first.token, Identity.create(), "one", clock=Clock()))
            two = clients.enter_context(DirectoryClient(first.token, Identity.create(), "two", timeout=1.0))
            one.announce(own(one))
            two.announce(own(two))
            known = two.wait_for(lambda view: len(view.servers) == 2, PATIENCE)
        # Nobody is there: what is known stays, nothing hangs.
        with pytest.raises(DirectoryError, match="did not answer within 1 s"):
            two.place(own(two), 6)
        two.update(own(two, state="draining"))
        assert two.view == known and two.admits(one._identity.public)
        with running(Directory(first.address, tmp_path)) as again, clients.pop_all() as clients:
            assert str(again.token) == str(first.token)
            late = clients.enter_context(DirectoryClient(again.token, Identity.create(), "late"))
            view = late.wait_for(lambda view: len(view.servers) == 2, PATIENCE)
            assert unnumbered(view) == {s.key: s for s in (own(one), own(two, state="draining"))}
            two.wait_for(lambda view: view.servers == late.view.servers and len(view.members) == 3, PATIENCE)
            assert late.place(own(late), 6) == (0, 6)
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("lost the directory at") for line in lines) == 2  # once each, not once an attempt
    assert sum(line.endswith("is back") for line in lines) == 2


def test_a_server_may_leave_and_a_client_close_while_the_directory_is_away(tmp_path: Path) -> None:
    with running(Directory("127.0.0.1:0", tmp_path)) as directory:
        client = DirectoryClient(directory.token, Identity.create(), "peer")
        client.start()
        client.announce(own(client))
    began = time.monotonic()
    client.withdraw()
    client.close()
    client.close()
    assert time.monotonic() - began < QUICK
    with pytest.raises(DirectoryError, match="was closed"):
        client.place(own(client), 1)


def test_a_request_that_the_directory_lost_is_answered_by_the_next_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        with running(Directory("127.0.0.1:0", tmp_path)) as first:
            client = stack.enter_context(DirectoryClient(first.token, Identity.create(), "peer", timeout=PATIENCE))
        placed: list[tuple[int, int]] = []
        asking = threading.Thread(target=lambda: placed.append(client.place(own(client), 6)))
        asking.start()
        with running(Directory(first.address, tmp_path)):
            asking.join(PATIENCE)
            assert placed == [(0, 6)]


# --- a directory that is not as it should be -------------------------------------------------------------------------


class ScriptedDirectory:
    """A listener in the test's hands that plays the directory for one client."""

    def __init__(self) -> None:
        self._context: Context = zmq.Context()
        self._gate = ZapAuthenticator(self._context, lambda key: True)
        identity = Identity.create()
        self._listener = Listener(self._context, "127.0.0.1:0", identity)
        address = f"127.0.0.1:{self._listener.port}"
        self.token = JoinToken((address,), identity.public, Identity.create().secret)
        self._route = b""

    def __enter__(self) -> ScriptedDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._gate.close()
        self._context.term()

    def hear(self, kind: type[Any]) -> Any:
        """The next message, which must be of this kind."""
        assert self._listener.socket.poll(PATIENCE * 1000)
        received = self._listener.receive()
        assert received is not None and isinstance(received.message, kind), received
        self._route = received.route
        return received.message

    def is_asked(self, within: float) -> bool:
        """Whether there is a message, or comes one within seconds."""
        return bool(self._listener.socket.poll(within * 1000))

    def say(self, *messages: wire.Message) -> None:
        for message in messages:
            assert self._listener.send(self._route, message)

    def tell_state(self, sequence: int, *servers: wire.ServerInfo) -> None:
        """Answer a `Watch`, in two parts."""
        request = self.hear(wire.Watch).request
        for part in ((), servers):
            self.say(wire.Snapshot(request, sequence, (), part))
        self.say(wire.Done(request))


def test_a_missed_change_is_healed() -> None:
    one, two, three = (server(key, model=key) for key in KEYS[:3])
    with ScriptedDirectory() as directory, ExitStack() as clients:
        client = DirectoryClient(directory.token, Identity.create(), "peer")
        starting = threading.Thread(target=client.start)
        starting.start()
        directory.tell_state(5, one)
        starting.join()
        clients.callback(client.close)
        directory.say(wire.Change(5, wire.PeerGone(one.key, "long ago")), wire.Change(6, wire.ServerUpdated(two)))
        assert set(client.wait_for(lambda view: len(view.servers) == 2, PATIENCE).servers) == {one.key, two.key}
        directory.say(wire.Change(8, wire.PeerGone(two.key, "it left")))  # 7 got lost
        directory.say(
            wire.Change(9, wire.PeerGone(one.key, "it left"))
        )  # and this is of no use before the state is known
        directory.tell_state(9, three)
        client.wait_for(lambda view: set(view.servers) == {three.key}, PATIENCE)
        directory.say(wire.Change(10, wire.ServerUpdated(two)))
        client.wait_for(lambda view: set(view.servers) == {two.key, three.key}, PATIENCE)


def test_a_directory_that_is_busy_is_asked_again_when_it_says() -> None:
    clock = Clock()
    with ScriptedDirectory() as directory, ExitStack() as clients:
        client = DirectoryClient(directory.token, Identity.create(), "peer", timeout=PATIENCE, clock=clock)
        starting = threading.Thread(target=client.start)
        starting.start()
        refused = directory.hear(wire.Watch).request
        directory.say(wire.Refused("busy", "too many requests", request=refused, retry_after=0.5))
        for _ in range(100):  # half of the time after which any question is asked again
            clock.now += PATIENCE / 200
            if directory.is_asked(within=0.05):
                break
        directory.tell_state(1)
        starting.join()
        clients.callback(client.close)


def test_a_directory_that_says_nothing_is_a_clear_line() -> None:
    with ScriptedDirectory() as directory:
        assert "does not answer" in refusal_of(directory.token, timeout=1.0)


def test_a_callback_that_fails_does_not_stop_the_client(
    directory: Directory, join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(view: View) -> None:
        raise ValueError("not my day")

    client, other = join(on_change=fail), join()
    client.wait_for(lambda view: other._identity.public in view.members, PATIENCE)
    assert "not my day" in caplog.text
