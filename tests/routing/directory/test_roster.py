"""Directories that have heard the same things hold the same, in whatever order they heard them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing import wire
from routing.directory.roster import Roster
from routing.security import Identity, short_id
from tests.routing.material import KEYS

TOKEN = Identity.create().public
keys = st.sampled_from(KEYS)
dates = st.sampled_from([1.0, 2.0, 3.0])
names = st.sampled_from(["", "a", "b"])
ids = st.sampled_from(["", short_id(TOKEN)])

rosters = st.builds(
    Roster.of,
    st.lists(st.builds(wire.Member, keys, names, dates, names, ids), max_size=5),
    st.lists(st.builds(wire.DirectoryInfo, keys, names, st.just(("host:1",)), dates, ids), max_size=3),
    st.lists(st.builds(wire.TokenRecord, keys, dates, st.none() | dates, st.integers(0, 2), st.none() | dates)),
    st.lists(st.builds(wire.Expulsion, keys, dates, names, names, ids), max_size=2),
)


@given(rosters, rosters, rosters)
def test_the_order_in_which_directories_hear_of_each_other_does_not_matter(a: Roster, b: Roster, c: Roster) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) is a
    assert a.merge(b).merge(b) == a.merge(b)


@given(rosters, rosters)
def test_what_is_new_is_enough_to_catch_up_and_equal_digests_mean_equal_rosters(a: Roster, b: Roster) -> None:
    merged = a.merge(b)
    assert a.merge(merged.since(a)) == merged
    assert merged.since(merged) == Roster()
    assert (a.digest == b.digest) == (a == b)
    assert a.merge(b).digest == b.merge(a).digest


@given(rosters, rosters)
def test_an_expulsion_and_a_revocation_are_never_undone(a: Roster, b: Roster) -> None:
    merged = a.merge(b)
    assert set(merged.expelled) == set(a.expelled) | set(b.expelled)
    assert set(merged.expelled).isdisjoint({*merged.members, *merged.sites})
    assert set(merged.members) == (set(a.members) | set(b.members)) - set(merged.expelled)
    for table in (a.enrolments, b.enrolments):
        for key, enrolment in table.items():
            assert enrolment.revoked is None or merged.enrolments[key].revoked is not None


def test_a_token_is_good_until_it_expires_is_used_up_or_revoked() -> None:
    token = wire.TokenRecord(TOKEN, 0.0, expires=10.0, uses=2)
    roster = Roster.of(enrolments=[token])
    assert roster.may_enrol(TOKEN, 9.9) and not roster.may_enrol(TOKEN, 10.0) and not roster.may_enrol(KEYS[0], 0.0)
    assert roster.trouble(token, 10.0) == "expired"
    one = roster.merge(Roster.of([wire.Member(KEYS[0], "", 1.0, "", short_id(TOKEN))]))
    assert one.may_enrol(TOKEN, 5.0)
    # One who was expelled has used the token all the same.
    gone = one.merge(Roster.of(expelled=[wire.Expulsion(KEYS[0], 2.0, token=short_id(TOKEN))]))
    assert gone.used(token) == 1
    two = gone.merge(Roster.of([wire.Member(KEYS[1], "", 1.0, "", short_id(TOKEN))]))
    assert not two.may_enrol(TOKEN, 5.0) and two.trouble(token, 5.0) == "used up"
    revoked = one.merge(Roster.of(enrolments=[msgspec.structs.replace(token, revoked=4.0)]))
    assert not revoked.may_enrol(TOKEN, 5.0) and revoked.trouble(revoked.enrolments[TOKEN], 5.0) == "revoked"


def test_the_later_address_of_a_directory_holds() -> None:
    old = wire.DirectoryInfo(KEYS[0], "one", ("host:1",), 1.0)
    new = msgspec.structs.replace(old, addresses=("other:2",), updated=2.0)
    assert Roster.of(sites=[old]).merge(Roster.of(sites=[new])).sites[KEYS[0]] == new
    assert Roster.of(sites=[new]).merge(Roster.of(sites=[old])).sites[KEYS[0]] == new


@pytest.mark.parametrize("key", KEYS)
def test_the_id_of_a_token_is_short_and_its_own(key: str) -> None:
    assert len(short_id(key)) == 8 and {short_id(key)}.isdisjoint(short_id(other) for other in KEYS if other != key)
