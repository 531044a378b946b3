from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from routing import wire
from routing.directory.registry import MAX_BLOCKS, MAX_TTL, Registry, RequestRefused
from routing.directory.roster import Roster
from routing.security import Identity, short_id
from routing.view import View, apply
from tests.routing.material import KEYS, server

TOKEN = Identity.create().public
OLD_TOKEN = Identity.create().public
NO_KEYS = ("~" * 40, "#" * 40, "é" * 40)
EXPIRES = 1_000_000.0
A, B, C = KEYS[:3]

keys = st.sampled_from(KEYS)
ttls = st.sampled_from([1.0, 15.0, 1e6])
servers = st.builds(
    lambda key, start, length, **fields: server(key, start, start + length, **fields),
    keys,
    st.integers(0, 11),
    st.integers(0, 12),
    model=st.sampled_from(["toy", "other"]),
    blocks=st.sampled_from([24, 24, 24, 25]),
    hidden_size=st.sampled_from([64, 64, 64, 65]),
    state=st.sampled_from(["joining", "ready", "draining"]),
    throughput=st.sampled_from([0.0, 10.0, 100.0]),
    kv_free=st.integers(0, 2),
    fingerprint=st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from("1112"), max_size=2),
)


class Registering(RuleBasedStateMachine):
    """Peers do what they like, in any order. `model` is the plainest thing that could be right."""

    @initialize()
    def begin(self) -> None:
        members = [wire.Member(key, "name", 7.0) for key in KEYS[:4]]
        tokens = [wire.TokenRecord(TOKEN, 0.0, EXPIRES), wire.TokenRecord(OLD_TOKEN, 0.0, 0.0)]
        self.registry = Registry(Roster.of(members, enrolments=tokens), max_members=5, max_servers=3)
        self.replay = View({member.key: member for member in members})
        self.ends: dict[str, float] = {}
        self.ttls: dict[str, float] = {}
        self.now = 0.0

    def take(self, events: tuple[wire.Event, ...]) -> None:
        for event in events:
            self.replay = apply(self.replay, event)
            if isinstance(event, wire.PeerGone):
                del self.ends[event.key]

    @rule(by=st.sampled_from([TOKEN, TOKEN, TOKEN, OLD_TOKEN, A]), key=st.sampled_from([*KEYS, *KEYS, TOKEN, *NO_KEYS]))
    def enrol(self, by: str, key: str) -> None:
        members = set(self.registry.view.members)
        may = by == TOKEN and key not in (TOKEN, *NO_KEYS) and (key in members or len(members) < 5)
        may = may and key not in self.registry.view.expelled
        try:
            events = self.registry.enrol(by, key, "name", 7.0)
        except RequestRefused:
            assert not may
        else:
            assert may
            member = wire.Member(key, "name", 7.0, token=short_id(TOKEN))
            assert events == (() if key in members else (wire.MemberJoined(member),))
            self.take(events)

    @rule(key=keys)
    def expel(self, key: str) -> None:
        if key in self.registry.view.members:
            self.take(self.registry.expel(key, 8.0))
        elif key in self.registry.view.expelled:
            assert self.registry.expel(key, 8.0) == ()
        else:
            with pytest.raises(RequestRefused, match="no such peer"):
                self.registry.expel(key, 8.0)
        assert not self.registry.is_member(key) and key not in self.registry.view.servers

    @rule(peer=keys, said=servers, ttl=ttls, own=st.sampled_from([True, True, True, False]))
    def announce(self, peer: str, said: wire.ServerInfo, ttl: float, own: bool) -> None:
        said = msgspec.structs.replace(said, key=peer) if own else said
        known = self.registry.view.servers.get(peer)
        try:
            events = self.registry.announce(peer, said, ttl, self.now)
        except RequestRefused as refusal:
            assert refusal.reason and "\n" not in refusal.reason
            assert self.registry.view.servers.get(peer) == known
        else:
            assert said.key == peer and self.registry.is_member(peer)
            assert events == (() if known == said else (wire.ServerUpdated(said),))
            self.ttls[peer] = min(ttl, MAX_TTL)
            self.ends[peer] = self.now + self.ttls[peer]
            self.take(events)

    @rule(peer=keys, said=servers, capacity=st.integers(1, 20), ttl=ttls)
    def place(self, peer: str, said: wire.ServerInfo, capacity: int, ttl: float) -> None:
        said = msgspec.structs.replace(said, key=peer)
        try:
            start, end = self.registry.place(peer, said, capacity, ttl, self.now)
        except RequestRefused as refusal:
            assert refusal.code in ("not_a_member", "conflict", "full")
        else:
            assert 0 <= start < end <= said.blocks and end - start == min(capacity, said.blocks)

    @rule(peer=keys)
    def withdraw(self, peer: str) -> None:
        self.take(self.registry.withdraw(peer))
        assert peer not in self.registry.view.servers

    @rule(peer=keys)
    def hear(self, peer: str) -> None:
        self.registry.heard(peer, self.now)
        if peer in self.ends:
            self.ends[peer] = self.now + self.ttls[peer]

    @rule(seconds=st.sampled_from([0.5, 1.0, 14.0, 300.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        over = {key for key, end in self.ends.items() if end <= self.now}
        events = self.registry.expire(self.now)
        assert {event.key for event in events if isinstance(event, wire.PeerGone)} == over
        self.take(events)

    @precondition(lambda self: hasattr(self, "registry"))
    @invariant()
    def the_view_is_the_replay_of_the_events(self) -> None:
        assert self.registry.view == self.replay

    @precondition(lambda self: hasattr(self, "registry"))
    @invariant()
    def every_server_is_a_member_with_a_lease_and_a_span(self) -> None:
        view = self.registry.view
        assert set(view.servers) == set(self.ends) and set(view.servers) <= set(view.members)
        assert len(view.members) <= 5 and len(view.servers) <= 3
        for each in view.servers.values():
            assert 0 <= each.start < each.end <= each.blocks
        due = self.registry.next_expiry()
        assert not self.ends or (due is not None and due <= min(self.ends.values()))

    @precondition(lambda self: hasattr(self, "registry"))
    @invariant()
    def servers_of_one_model_agree(self) -> None:
        for one in self.registry.view.servers.values():
            for other in self.registry.view.serving(one.model):
                assert (one.blocks, one.hidden_size) == (other.blocks, other.hidden_size)
                common = one.fingerprint.keys() & other.fingerprint.keys()
                assert all(one.fingerprint[name] == other.fingerprint[name] for name in common)


TestRegistering = Registering.TestCase
TestRegistering.settings = settings(max_examples=60, stateful_step_count=30)


def registry_of(*members: str) -> Registry:
    return Registry(
        Roster.of((wire.Member(key, "", 0.0) for key in members), enrolments=[wire.TokenRecord(TOKEN, 0.0)])
    )


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"key": B}, "not_yours", "its own key"),
        ({"start": 5, "end": 5}, "malformed", "5:5 are not within 'toy', 0:12"),
        ({"end": 13}, "malformed", "0:13 are not within"),
        ({"hidden_size": 65}, "conflict", "hidden size 64 there, 65 here"),
        ({"blocks": 13}, "conflict", "12 blocks there, 13 here"),
        (
            {"fingerprint": {"config": "2", "other": "x"}},
            "conflict",
            r"model 'toy' is already served with other weights \(config differs\): serve yours under another name with "
            "--model-name",
        ),
        ({"throughput": float("inf")}, "malformed", "finite"),
        ({"addresses": ("nowhere",)}, "malformed", "'nowhere' is no address"),
        ({"addresses": ("host:0",)}, "malformed", "no address"),
        ({"addresses": ("a;b:1",)}, "malformed", "no address"),
        ({"name": "red\x1b[31m"}, "malformed", "printed"),
        ({"model": ""}, "malformed", "names"),
        ({"blocks": MAX_BLOCKS + 1}, "malformed", "limit"),
        ({"fingerprint": {str(n): "x" * 256 for n in range(2000)}}, "malformed", "bytes"),
    ],
)
def test_an_announcement_that_breaks_a_rule_is_refused_with_the_reason(
    fields: dict[str, Any], code: str, words: str
) -> None:
    registry = registry_of(A, B)
    registry.announce(B, server(B, fingerprint={"config": "1"}), 15, 0)
    before = registry.view
    with pytest.raises(RequestRefused, match=words) as caught:
        registry.announce(A, server(**{"key": A, **fields}), 15, 0)
    assert caught.value.code == code
    assert registry.view is before


def test_other_weights_are_welcome_under_another_name_or_once_the_first_are_gone() -> None:
    registry = registry_of(A, B)
    registry.announce(A, server(A, fingerprint={"config": "1"}), 15, 0)
    other = server(B, fingerprint={"config": "2"})
    assert registry.announce(B, msgspec.structs.replace(other, model="toy-2"), 15, 0)
    registry.expire(10_000)
    assert registry.announce(B, other, 15, 10_000)


def test_a_renewal_changes_nothing_but_the_lease() -> None:
    registry = registry_of(A)
    assert registry.announce(A, server(A), 15, 0)
    assert registry.announce(A, server(A), 15, 10) == ()
    assert registry.expire(20) == ()
    registry.heard(A, 20)
    assert registry.expire(34) == ()
    assert registry.expire(35) == (wire.PeerGone(A, "its lease ran out"),)


def test_servers_that_start_together_take_different_spans() -> None:
    registry = registry_of(A, B, C)
    assert registry.place(A, server(A), 6, 15, 0) == (0, 6)
    assert registry.place(B, server(B), 6, 15, 0) == (6, 12)
    registry.announce(A, server(A, 0, 6, state="joining", throughput=0.0), 15, 1)
    assert registry.place(C, server(C), 12, 15, 2) == (0, 12)
    assert registry.place(C, server(C), 6, 15, 14) == (0, 6)
    assert registry.place(C, server(C), 6, 15, 15) == (6, 12)  # B has not come in its time


def test_a_place_goes_where_the_throughput_is_least() -> None:
    registry = registry_of(A, B, C)
    registry.announce(A, server(A, 0, 6, throughput=600.0), 15, 0)
    registry.announce(B, server(B, 6, 12, throughput=60.0), 15, 0)
    assert registry.place(C, server(C), 6, 15, 0) == (6, 12)
    registry.announce(A, server(A, 0, 6, state="draining"), 15, 0)
    assert registry.place(C, server(C), 6, 15, 0) == (0, 6)
    assert registry.place(B, server(B), 12, 15, 0) == (0, 12)


def test_an_expired_token_enrols_nobody_but_members_stay() -> None:
    registry = Registry(Roster.of([wire.Member(A, "", 0.0)], enrolments=[wire.TokenRecord(TOKEN, 0.0, 100.0)]))
    assert registry.admits(TOKEN, 99.0) and not registry.admits(TOKEN, 100.0)
    assert registry.admits(A, 1e9) and not registry.admits(B, 0.0)
    with pytest.raises(RequestRefused, match="ask for a new one"):
        registry.enrol(TOKEN, B, "", 100.0)


def test_a_server_that_is_started_again_takes_its_place_again_where_that_is_still_sensible() -> None:
    registry = registry_of(A, B, C)
    registry.announce(A, server(A, 0, 6), 15, 0)
    registry.announce(B, server(B, 6, 12), 15, 0)
    assert registry.place(B, server(B), 6, 15, 1) == (6, 12)  # its lease still runs
    registry.withdraw(B)
    registry.expire(100)
    registry.announce(A, server(A, 0, 6), 15, 100)
    registry.announce(C, server(C, 0, 12, throughput=1000.0), 15, 100)
    assert registry.place(B, server(B), 6, 15, 101) == (6, 12)
    assert registry.place(B, server(B), 7, 15, 101) == (6, 12)  # memory that is free is not the same each time
    assert registry.place(B, server(B, model="other"), 6, 15, 101) == (0, 6)
    registry.withdraw(A)
    registry.announce(C, server(C, 6, 12), 15, 102)
    assert registry.place(B, server(B), 6, 15, 103) == (0, 6)  # nobody serves that now


def test_a_swarm_that_is_full_says_so_and_a_key_once_expelled_never_returns() -> None:
    registry = Registry(Roster.of(enrolments=[wire.TokenRecord(TOKEN, 0.0)]), max_members=2)
    registry.enrol(TOKEN, A, "", 1.0)
    registry.enrol(TOKEN, B, "", 1.0)
    with pytest.raises(RequestRefused, match="the swarm has 2 members, which is its limit"):
        registry.enrol(TOKEN, C, "", 1.0)
    registry.announce(A, server(A), 15, 0)
    assert registry.expel(A, 2.0) == (wire.PeerGone(A, "it was expelled"), wire.MemberExpelled(A))
    registry.enrol(TOKEN, C, "", 3.0)
    for refused in (lambda: registry.enrol(TOKEN, A, "", 3.0), lambda: registry.announce(A, server(A), 15, 3)):
        with pytest.raises(RequestRefused):
            refused()
    # Another directory that has not heard of it does not bring it back.
    registry.merge(Roster.of([wire.Member(A, "", 0.5)]))
    assert not registry.is_member(A) and A in registry.view.expelled


def test_nobody_can_keep_a_directory_out_by_enrolling_its_key_as_a_peer() -> None:
    tokens = [wire.TokenRecord(TOKEN, 0.0), wire.TokenRecord(OLD_TOKEN, 0.0, role="directory")]
    registry = Registry(Roster.of(enrolments=tokens))
    registry.enrol(TOKEN, A, "squatter", 1.0)
    assert not registry.is_directory(A)
    (event,) = registry.enrol(OLD_TOKEN, A, "directory", 2.0, "directory", ("host:1",))
    assert event == wire.DirectoryListed(wire.DirectoryInfo(A, "directory", ("host:1",), 2.0, short_id(OLD_TOKEN)))
    with pytest.raises(RequestRefused, match="addresses that others could dial"):
        registry.enrol(OLD_TOKEN, B, "directory", 2.0, "directory", ("nowhere",))
