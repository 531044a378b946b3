from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from routing.addresses import is_dialable
from routing.relay.rules import (
    NAME,
    PREAMBLE,
    PendingCall,
    Preamble,
    Relay,
    RelayLimits,
    is_relayed,
    name_of,
    parse_address,
    relay_address,
)
from tests.routing.material import KEYS

LIMITS = RelayLimits(connections=5, per_source=3, peers=3, per_peer=3, waiting=2, lease=30, patience=5)


@given(st.sampled_from(["dial", "ticket"]), st.binary(min_size=NAME, max_size=NAME))
def test_a_preamble_arrives_as_it_was_sent(kind: str, what: bytes) -> None:
    preamble = Preamble(kind, what)  # type: ignore[arg-type]
    assert len(bytes(preamble)) == PREAMBLE
    assert Preamble.parse(bytes(preamble)) == preamble


@given(st.binary(max_size=2 * PREAMBLE))
def test_what_is_no_preamble_is_nothing(raw: bytes) -> None:
    assert Preamble.parse(raw) is None or bytes(Preamble.parse(raw) or b"") == raw


@given(st.sampled_from(KEYS), st.sampled_from(["10.0.0.1:7701", "router.example.org:1", "[fd00::1]:65535"]))
def test_a_relayed_address_names_the_router_and_the_peer(key: str, router: str) -> None:
    address = relay_address(router, key)
    way = parse_address(address)
    assert way is not None and is_relayed(address) and is_dialable(address) and not is_relayed(router)
    assert way.name == name_of(key)
    assert f"[{way.host}]:{way.port}" == router or f"{way.host}:{way.port}" == router


@given(st.text("relay:/[]0123456789abcdef.", max_size=80) | st.text(max_size=20).map("relay:".__add__))
def test_what_looks_like_a_relayed_address_leads_somewhere_or_is_refused(text: str) -> None:
    way = parse_address(text)
    assert is_dialable(text) == (way is not None) or not is_relayed(text)
    if way is not None:
        assert 0 < way.port < 65536 and len(way.name) == NAME and way.host


class RelayRules(RuleBasedStateMachine):
    """Peers come and go, dialers call and tickets are shown in any order, and time passes."""

    def __init__(self) -> None:
        super().__init__()
        tickets = itertools.count(1)
        self.relay = Relay(LIMITS, lambda: next(tickets).to_bytes(NAME, "big"))
        self.now = 0.0
        self.leases: dict[str, tuple[bytes, float]] = {}
        self.calls: list[PendingCall] = []  # every call that has not hung up
        self.good: dict[bytes, float] = {}  # tickets that were not shown yet
        self.sources: list[str] = []

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=st.sampled_from(KEYS[:4]), route=st.sampled_from([b"a", b"b"]))
    def a_peer_registers(self, key: str, route: bytes) -> None:
        alive = {other for other, (_, until) in self.leases.items() if self.now < until}
        taken = self.relay.register(key, route, self.now)
        assert taken or len(alive - {key}) >= LIMITS.peers
        if taken:
            self.leases[key] = route, self.now + LIMITS.lease

    @rule(key=st.sampled_from(KEYS[:4]), route=st.sampled_from([b"a", b"b"]))
    def a_connection_to_a_peer_is_lost(self, key: str, route: bytes) -> None:
        self.relay.forget(key, route)
        if self.leases.get(key, (b"", 0.0))[0] == route:
            del self.leases[key]

    @rule(key=st.sampled_from(KEYS[:4]))
    def somebody_dials(self, key: str) -> None:
        call = self.relay.dial(name_of(key), self.now)
        route, until = self.leases.get(key, (b"", 0.0))
        mine = [call for call in self.calls if call.key == key]
        waiting = [call for call in mine if call.ticket in self.good]
        welcome = self.now < until and len(mine) < LIMITS.per_peer and len(waiting) < LIMITS.waiting
        assert (call is not None) == welcome
        if call is not None:
            assert (call.key, call.route) == (key, route)
            self.calls.append(call)
            self.good[call.ticket] = self.now + LIMITS.patience

    @rule(data=st.data())
    def a_ticket_is_shown(self, data: st.DataObject) -> None:
        ticket = data.draw(st.integers(0, 20)).to_bytes(NAME, "big")
        assert self.relay.redeem(ticket, self.now) == (self.now < self.good.pop(ticket, 0.0))

    @rule(data=st.data())
    def a_dialer_hangs_up(self, data: st.DataObject) -> None:
        if self.calls:
            call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
            self.relay.hung_up(call)
            self.good.pop(call.ticket, None)

    @rule(source=st.sampled_from(["10.0.0.1", "10.0.0.2"]))
    def a_connection_comes(self, source: str) -> None:
        room = len(self.sources) < LIMITS.connections and self.sources.count(source) < LIMITS.per_source
        assert self.relay.arrive(source) == room
        if room:
            self.sources.append(source)

    @rule(data=st.data())
    def a_connection_ends(self, data: st.DataObject) -> None:
        if self.sources:
            self.relay.leave(self.sources.pop(data.draw(st.integers(0, len(self.sources) - 1))))

    @invariant()
    def nothing_is_kept_that_nobody_needs(self) -> None:
        assert len(self.relay._peers) <= LIMITS.peers
        assert self.relay._waiting.keys() == self.good.keys()
        assert self.relay._dialers.total() == len(self.calls)
        assert self.relay._sources.total() == self.relay._connections == len(self.sources)


TestRelayRules = RelayRules.TestCase
TestRelayRules.settings = settings(max_examples=150, stateful_step_count=40)
