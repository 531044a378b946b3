"""The directory over real sockets, spoken to by peers that may say anything."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing import wire
from routing.addresses import MOST, in_order, is_dialable, reachable
from routing.directory.directory import Directory, DirectoryError
from routing.links import Connected, LinkError, Lost, Received
from routing.security import Identity
from routing.view import Mirror
from tests.routing.material import Clock, Peer, running, server


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with running(Directory("127.0.0.1:0", tmp_path)) as directory:
        yield directory


def reason_of(answer: wire.AnyMessage) -> str:
    assert isinstance(answer, wire.Refused), answer
    return f"{answer.code}: {answer.reason}"


# --- who gets in -----------------------------------------------------------------------------------------------------


def test_a_peer_that_has_not_enrolled_gets_nothing(directory: Directory) -> None:
    with Peer() as stranger, Peer.member_of(directory) as member:
        stranger.dial(directory.token)
        stranger.dialer.send(directory.token.directory, wire.Watch(1))
        for _ in range(2):
            assert stranger.next(Lost, Connected, Received) == Lost(directory.token.directory, "refused")
        assert isinstance(member.ask(directory.token.directory, wire.Ping(0)), wire.Pong)


def test_the_join_token_enrols_one_peer_and_does_nothing_else(directory: Directory) -> None:
    key, other = Identity.create().public, Identity.create().public
    with Peer(Identity.from_secret(directory.token.secret)) as newcomer:
        newcomer.dial(directory.token)
        for message in (
            wire.Watch(0),
            wire.Announce(0, server(newcomer.key), 15),
            wire.Place(0, server(newcomer.key), 1, 15),
            wire.Withdraw(0),
            wire.Ping(0),
        ):
            assert reason_of(newcomer.ask(directory.token.directory, message)).startswith("not_a_member")
        assert isinstance(newcomer.ask(directory.token.directory, wire.Enrol(0, key, "one")), wire.Done)
        assert isinstance(newcomer.ask(directory.token.directory, wire.Enrol(0, key, "one")), wire.Done)
        assert "one peer enrols" in reason_of(newcomer.ask(directory.token.directory, wire.Enrol(0, other, "two")))


def test_a_member_enrols_nobody_and_speaks_for_itself_only(directory: Directory) -> None:
    with Peer.member_of(directory) as member, Peer.member_of(directory) as other:
        to = directory.token.directory
        assert "enrols no peer" in reason_of(member.ask(to, wire.Enrol(0, Identity.create().public, "friend")))
        for message in (wire.Announce(0, server(other.key), 15), wire.Place(0, server(other.key), 1, 15)):
            assert reason_of(member.ask(to, message)) == "not_yours: a server may only speak for its own key"
        assert "no answer to Pong" in reason_of(member.ask(to, wire.Pong(0)))


def test_an_expired_token_is_refused_in_the_handshake_and_after_it(tmp_path: Path) -> None:
    clock = Clock()
    with running(Directory("127.0.0.1:0", tmp_path, token_ttl=60, clock=clock)) as directory:
        assert directory.token.expires == clock.now + 60
        with Peer(Identity.from_secret(directory.token.secret)) as early:
            early.dial(directory.token)
            early.next(Connected)
            clock.now += 60
            enrol = wire.Enrol(0, Identity.create().public, "late")
            assert "ask for a new one" in reason_of(early.ask(directory.token.directory, enrol))
        with Peer(Identity.from_secret(directory.token.secret)) as late:
            late.dial(directory.token)
            assert late.next(Lost, Connected) == Lost(directory.token.directory, "refused")


# --- what it does ----------------------------------------------------------------------------------------------------


def test_silence_ends_a_lease_and_any_message_extends_it(tmp_path: Path) -> None:
    ticks = Clock()
    with (
        running(Directory("127.0.0.1:0", tmp_path, ticks=ticks)) as directory,
        Peer.member_of(directory) as silent,
        Peer.member_of(directory) as alive,
        Peer.member_of(directory) as watcher,
    ):
        to = directory.token.directory
        for peer in (silent, alive):
            assert isinstance(peer.ask(to, wire.Announce(0, server(peer.key), 15)), wire.Done)
        assert isinstance(watcher.ask(to, wire.Watch(0)), wire.Snapshot)
        ticks.now += 10
        assert isinstance(alive.ask(to, wire.Ping(0)), wire.Pong)
        ticks.now += 10
        assert watcher.next(wire.Change).event == wire.PeerGone(silent.key, "its lease ran out")
        ticks.now += 5
        assert watcher.next(wire.Change).event == wire.PeerGone(alive.key, "its lease ran out")


def test_the_feed_numbers_every_change_and_a_renewal_is_none(directory: Directory) -> None:
    with Peer.member_of(directory) as one, Peer.member_of(directory) as watcher:
        to = directory.token.directory
        first = watcher.ask(to, wire.Watch(0))
        assert isinstance(first, wire.Snapshot)
        loading, ready = server(one.key, state="joining"), server(one.key)
        for message in (
            wire.Announce(0, loading, 15),
            wire.Announce(0, loading, 15),
            wire.Announce(0, ready, 15),
            wire.Withdraw(0),
            wire.Withdraw(0),
        ):
            assert isinstance(one.ask(to, message), wire.Done)
        with Peer.member_of(directory) as two:
            changes = [watcher.next(wire.Change) for _ in range(4)]
            assert [change.sequence - first.sequence for change in changes] == [1, 2, 3, 4]
            assert [change.event for change in changes[:3]] == [
                wire.ServerUpdated(loading),
                wire.ServerUpdated(ready),
                wire.PeerGone(one.key, "it left"),
            ]
            assert changes[3].event.member.key == two.key


def test_a_watcher_that_does_not_read_gets_the_state_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More changes than all the queues between them hold; then it reads on."""
    monkeypatch.setattr("routing.links.HIGH_WATER", 10)
    padding = {str(number): "x" * 250 for number in range(900)}
    with (
        running(Directory("127.0.0.1:0", tmp_path)) as directory,
        Peer.member_of(directory) as busy,
        Peer.member_of(directory) as slow,
    ):
        to = directory.token.directory
        mirror = Mirror()
        mirror.watch(1)
        assert slow.dialer.send(to, wire.Watch(1))
        for round_ in range(100):
            said = server(busy.key, dtype=str(round_), fingerprint=padding)
            assert isinstance(busy.ask(to, wire.Announce(0, said, 60)), wire.Done)
        snapshots = 0
        while mirror.view.servers.get(busy.key) != said:
            message = slow.next(wire.Snapshot, wire.Done, wire.Change)
            snapshots += isinstance(message, wire.Snapshot) and not message.servers
            assert mirror.receive(message) != "gap"
        assert snapshots > 1
        assert isinstance(busy.ask(to, wire.Withdraw(0)), wire.Done)
        while busy.key in mirror.view.servers:
            mirror.receive(slow.next(wire.Change))


def test_a_large_state_comes_in_parts(directory: Directory) -> None:
    to = directory.token.directory
    padding = {str(number): "x" * 250 for number in range(900)}
    with Peer.member_of(directory) as one, Peer.member_of(directory) as two, Peer.member_of(directory) as watcher:
        peers = [one, two, watcher]
        with Peer.member_of(directory) as three, Peer.member_of(directory) as four, Peer.member_of(directory) as five:
            peers += [three, four, five]
            for peer in peers:
                said = server(peer.key, fingerprint=padding)
                assert isinstance(peer.ask(to, wire.Announce(0, said, 60)), wire.Done)
            mirror = Mirror()
            mirror.watch(1)
            assert watcher.dialer.send(to, wire.Watch(1))
            parts = 0
            while not mirror.complete:
                message = watcher.next(wire.Snapshot, wire.Done)
                parts += isinstance(message, wire.Snapshot) and bool(message.servers)
                mirror.receive(message)
            assert parts > 1
            assert set(mirror.view.servers) == {peer.key for peer in peers}


def test_who_asks_too_often_is_told_when_to_come_back_and_disturbs_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("routing.directory.directory.BURST", 45.0)
    ticks = Clock()
    with (
        running(Directory("127.0.0.1:0", tmp_path, ticks=ticks)) as directory,
        Peer.member_of(directory) as busy,
        Peer.member_of(directory) as other,
    ):
        to = directory.token.directory
        said = [busy.ask(to, wire.Ping(0)) for _ in range(60)]
        assert [type(answer) for answer in said] == [wire.Pong] * 45 + [wire.Refused] * 15
        assert "busy: you ask more than 50 times a second" in reason_of(said[-1])
        wait = said[-1].retry_after  # type: ignore[union-attr]
        assert wait == pytest.approx(1 / 50)
        for message in (wire.Watch(0), wire.Place(0, server(busy.key), 1, 15), wire.Announce(0, server(busy.key), 15)):
            assert "busy" in reason_of(busy.ask(to, message))
        assert isinstance(other.ask(to, wire.Announce(0, server(other.key), 15)), wire.Done)
        ticks.now += 1
        assert isinstance(busy.ask(to, wire.Ping(0)), wire.Pong)


def test_more_watchers_than_there_is_room_for_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routing.directory.feed.Feed.__init__.__defaults__", (1,))
    with (
        running(Directory("127.0.0.1:0", tmp_path)) as directory,
        Peer.member_of(directory) as first,
        Peer.member_of(directory) as second,
    ):
        to = directory.token.directory
        assert isinstance(first.ask(to, wire.Watch(0)), wire.Snapshot)
        assert "1 watchers, which is its limit" in reason_of(second.ask(to, wire.Watch(0)))


# --- what it keeps ---------------------------------------------------------------------------------------------------


def test_a_restart_keeps_key_members_and_token(tmp_path: Path) -> None:
    with running(Directory("127.0.0.1:0", tmp_path)) as first, Peer.member_of(first) as member:
        pass
    with running(Directory(first.address, tmp_path)) as again:
        assert again.token == first.token
        with Peer(member.identity) as back:
            back.dial(again.token)
            assert back.next(Connected, Lost) == Connected(again.token.directory)


def test_the_state_of_the_version_before_is_read(tmp_path: Path) -> None:
    with running(Directory("127.0.0.1:0", tmp_path)) as first, Peer.member_of(first) as member:
        pass
    token = Identity.from_secret(first.token.secret).public
    old = {"members": [[member.key, "peer", 7.0]], "enrolments": [{"key": token, "expires": None}], "version": 1}
    (tmp_path / "directory.json").write_bytes(msgspec.json.encode(old))
    with running(Directory("127.0.0.1:0", tmp_path)) as again, Peer(member.identity) as back:
        assert again.token.secret == first.token.secret
        back.dial(again.token)
        assert back.next(Connected, Lost) == Connected(again.token.directory)


def test_a_token_is_replaced_when_it_is_over_or_another_kind_is_asked_for(tmp_path: Path) -> None:
    clock = Clock()

    def token(ttl: float | None) -> bytes:
        with running(Directory("127.0.0.1:0", tmp_path, token_ttl=ttl, clock=clock)) as directory:
            return directory.token.secret

    forever = token(None)
    assert token(None) == forever
    brief = token(60)
    assert brief != forever
    clock.now += 59
    assert token(60) == brief
    clock.now += 1
    assert token(60) != brief
    (tmp_path / "token.key").unlink()
    assert token(None) not in (forever, brief)


def damage(path: str, content: bytes | None) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        if content is None:
            (folder / path).unlink()
        else:
            (folder / path).write_bytes(content)

    return act


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage("directory.json", b'{"members": [["'), r"directory\.json is damaged .* move .* away"),
        (damage("directory.json", b""), r"directory\.json is damaged"),
        (damage("directory.json", b'{"members": [], "enrolments": [], "version": 3}'), "another version"),
        (damage("admin.key", b"no key"), r"admin\.key holds no key: delete it to get a new one"),
        (damage("directory.json", None), r"directory\.json is missing: restore it from a copy"),
        (damage("directory.key", None), r"directory\.key is missing: restore it"),
        (damage("directory.key", b"no key"), r"directory\.key holds no key: restore it"),
        (damage("token.key", b"no key"), r"token\.key holds no key: delete it to get a new join token"),
    ],
)
def test_a_damaged_state_is_never_mistaken_for_an_empty_swarm(
    tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    with running(Directory("127.0.0.1:0", tmp_path)) as directory, Peer.member_of(directory):
        pass
    harm(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DirectoryError, match=words) as caught:
        Directory("127.0.0.1:0", tmp_path)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_refuses_the_newcomer_and_loses_nobody(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    to = directory.token.directory
    newcomer = Identity.create()
    with Peer.member_of(directory) as member, Peer(Identity.from_secret(directory.token.secret)) as enroller:
        enroller.dial(directory.token)
        with monkeypatch.context() as patch:
            patch.setattr("routing.directory.store.os.fsync", full)
            answer = enroller.ask(to, wire.Enrol(0, newcomer.public, "late"))
            assert "cannot save its members" in reason_of(answer) and "make room on its disk" in reason_of(answer)
            with pytest.raises(DirectoryError, match="cannot keep the directory's state in"):
                Directory("127.0.0.1:0", tmp_path / "another")
        with Peer(newcomer) as stranger:
            stranger.dial(directory.token)
            assert stranger.next(Lost, Connected) == Lost(to, "refused")
        assert isinstance(member.ask(to, wire.Ping(0)), wire.Pong)
        assert isinstance(enroller.ask(to, wire.Enrol(0, newcomer.public, "late")), wire.Done)
    assert newcomer.public.encode() in (tmp_path / "directory.json").read_bytes().replace(b"\\", b"")


def test_a_folder_serves_one_directory_and_a_port_one_program(directory: Directory, tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match="another directory is running on"):
        Directory("127.0.0.1:0", tmp_path)
    for _ in range(2):  # a failed start leaves nothing behind that stops the next one
        with pytest.raises(DirectoryError, match="in use: choose another"):
            Directory(directory.address, tmp_path / "another")
    with running(Directory("127.0.0.1:0", tmp_path / "another")) as another:
        assert another.address != directory.address


def test_a_folder_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryError, match=r"cannot keep the directory's state in .*file"):
        Directory("127.0.0.1:0", tmp_path / "file")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits; the profile folder is private")
def test_only_the_owner_can_read_what_is_kept(directory: Directory, tmp_path: Path) -> None:
    for name in ("directory.key", "token.key", "admin.key", "directory.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_secrets_are_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        running(Directory("127.0.0.1:0", tmp_path)) as directory,
        Peer.member_of(directory) as member,
    ):
        pass
    assert "enrolled" in caplog.text
    for secret in (directory.token.secret, member.identity.secret, str(directory.token).encode()):
        assert secret.decode() not in caplog.text


# --- where it is -----------------------------------------------------------------------------------------------------


def test_a_directory_on_all_interfaces_can_be_reached_at_each_address_of_its_token(tmp_path: Path) -> None:
    with running(Directory("0.0.0.0:0", tmp_path)) as directory:
        assert directory.token.addresses[-1].startswith("127.0.0.1:")
        for address in directory.token.addresses:
            with Peer(Identity.from_secret(directory.token.secret)) as peer:
                peer.dialer.dial(directory.token.directory, (address,))
                assert peer.next(Connected, Lost) == Connected(directory.token.directory)


def test_addresses_that_the_user_names_are_advertised_instead() -> None:
    assert reachable("0.0.0.0", 7700, ["pc.example", "10.0.0.7:9000", "fe80::1", "[2001:db8::1]:80"]) == (
        "pc.example:7700",
        "10.0.0.7:9000",
        "[fe80::1]:7700",
        "[2001:db8::1]:80",
    )
    assert reachable("localhost", 7700) == ("localhost:7700",)
    assert reachable("::1", 7700) == ("[::1]:7700",)
    for bad in ("", "a b", "tcp://host", "host:99999"):
        with pytest.raises(LinkError, match="give HOST or HOST:PORT"):
            reachable("0.0.0.0", 7700, [bad])


@given(st.lists(st.ip_addresses().map(str), max_size=20), st.data())
def test_loopback_is_tried_last_and_link_local_never(addresses: list[str], data: st.DataObject) -> None:
    preferred = data.draw(st.sampled_from(["", *addresses]))
    ordered = in_order([*addresses, "127.0.0.1", "::1", "169.254.7.7", "fe80::7"], preferred)
    assert not {"169.254.7.7", "fe80::7"} & set(ordered)
    loopback = [address for address in ordered if address == "::1" or address.startswith("127.")]
    assert loopback and ordered[-len(loopback) :] == loopback
    if preferred in ordered and preferred not in loopback:
        assert ordered[0] == preferred


def test_every_address_of_this_machine_can_be_dialled() -> None:
    for host in ("0.0.0.0", "::"):
        addresses = reachable(host, 7700)
        assert 0 < len(addresses) <= MOST and all(map(is_dialable, addresses))
