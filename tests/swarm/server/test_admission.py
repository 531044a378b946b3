"""Admission: what one owner may take of a server's room that others want too."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Span
from routing import wire
from swarm.server import admission
from swarm.server.admission import (
    IDLE_AFTER,
    MAX_SESSIONS,
    RESTING_AFTER,
    SETTLED_AFTER,
    WANTED_FOR,
    Admission,
    SessionRefused,
    WaitingOwners,
    evictable,
    fair_share,
    reserved_by_owner,
)
from swarm.server.sessions import SessionTable

NOW = 1000.0
CAPACITY = 1000


@dataclass(frozen=True)
class Held:
    id: str
    owner: str
    max_length: int
    last_active: float = NOW
    opened: float = NOW
    disconnected_at: float | None = None


ages = st.sampled_from([0.0, RESTING_AFTER + 1, SETTLED_AFTER + 1, IDLE_AFTER + 1])
held = st.lists(
    st.builds(
        lambda number, owner, length, unused, older, left: Held(
            str(number), owner, length, NOW - unused, NOW - unused - older, NOW if left else None
        ),
        st.integers(),
        st.sampled_from("abcd"),
        st.integers(1, 400),
        ages,
        ages,
        st.booleans(),
    ),
    max_size=12,
    unique_by=lambda each: each.id,
)


@given(held, st.sampled_from("abcde"), st.integers(0, CAPACITY))
def test_whoever_keeps_within_its_share_keeps_what_it_uses(reserved: list[Held], owner: str, need: int) -> None:
    gone = list(evictable(reserved, CAPACITY, owner, need, NOW, keep=reserved[0].id if reserved else ""))
    assert len({each.id for each in gone}) == len(gone)
    assert not reserved or reserved[0] not in gone
    left = reserved_by_owner(reserved)
    for each in gone:
        unused = each.disconnected_at is not None or NOW - each.last_active > IDLE_AFTER
        if not unused:
            assert each.owner != owner
            assert left[each.owner] > fair_share(left, CAPACITY, [owner])
            assert NOW - each.last_active > RESTING_AFTER or NOW - each.opened > SETTLED_AFTER
        left[each.owner] -= each.max_length


@given(held, st.integers(1, CAPACITY))
def test_a_newcomer_gets_its_share_from_whoever_holds_too_much_for_long(reserved: list[Held], need: int) -> None:
    reserved = [Held(each.id, each.owner, each.max_length, NOW, NOW - SETTLED_AFTER - 1) for each in reserved]
    total = sum(each.max_length for each in reserved)
    if total > CAPACITY or need > fair_share(reserved_by_owner(reserved), CAPACITY, ["newcomer"]):
        return
    room = CAPACITY - total
    for each in evictable(reserved, CAPACITY, "newcomer", need, NOW):
        room += each.max_length
    assert room >= need


def test_those_who_left_give_way_first_then_those_who_rest_longest() -> None:
    reserved = [
        Held("resting", "a", 100, NOW - RESTING_AFTER - 1),
        Held("idle", "b", 100, NOW - IDLE_AFTER - 1),
        Held("busy", "a", 500),
        Held("left", "b", 100, disconnected_at=NOW),
    ]
    assert [each.id for each in evictable(reserved, CAPACITY, "c", 100, NOW)] == ["left", "idle", "resting"]
    assert [each.id for each in evictable(reserved, CAPACITY, "c", 600, NOW)] == ["left", "idle"]  # too much


def test_who_was_refused_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = WaitingOwners()
    waiting.refused("a", NOW)
    waiting.refused("b", NOW + 1)
    assert waiting.owners(NOW + 1) == {"a", "b"}
    assert waiting.owners(NOW + 1 + WANTED_FOR) == {"b"}
    waiting.admitted("b")
    assert not waiting.owners(NOW + 1)
    monkeypatch.setattr(admission, "MAX_WAITING", 10)
    for number in range(50):
        waiting.refused(str(number), NOW)
    assert len(waiting) == 10


# --- the same by way of a server's sessions ---------------------------------------------------------------------------

ME = "m" * 40


def table(capacity: int = CAPACITY) -> SessionTable:
    return SessionTable(Admission(ME, "toy", Span(0, 6), 6, capacity, 0))


def opening(session: str, length: int, epoch: int = 1, address: str = "127.0.0.1:1") -> wire.Open:
    return wire.Open(session.ljust(32), epoch, "toy", (wire.Hop(ME, (address,), 0, 6),), 0, length, 0)


def test_a_member_that_takes_all_room_gives_half_of_it_to_the_next() -> None:
    server = table()
    for number in range(10):
        server.open(opening(f"{number}", 100), "hog", b"", NOW)
    with pytest.raises(SessionRefused) as busy:
        server.open(opening("mine", 500), "other", b"", NOW)
    assert busy.value.code == "busy" and busy.value.retry_after
    later = NOW + SETTLED_AFTER + 1
    for session in server.all():
        session.last_active = later  # it keeps them all at work
    assert server.status(later, False).available_tokens == 500
    with pytest.raises(SessionRefused, match="no room"):
        server.open(opening("greedy", 600), "other", b"", later)
    _, gone = server.open(opening("mine", 500), "other", b"", later)
    assert len(gone) == 5 and {session.owner for session in gone} == {"hog"}
    assert (
        server.free == 0 and server.status(later, False).available_tokens == 0 + 200
    )  # a third owner may have a third: 333, in whole sessions


def test_while_somebody_waits_nobody_gets_more_than_its_share() -> None:
    server = table()
    for number in range(9):
        server.open(opening(f"{number}", 100), "hog", b"", NOW)
    with pytest.raises(SessionRefused, match="no room"):
        server.open(opening("mine", 200), "other", b"", NOW)
    with pytest.raises(SessionRefused) as refusal:
        server.open(opening("one more", 100), "hog", b"", NOW)
    assert refusal.value.code == "too_many" and refusal.value.retry_after
    server.close("0".ljust(32))
    server.open(opening("mine", 200), "other", b"", NOW + 1)
    assert server.free == 0


def test_sessions_and_addresses_have_limits() -> None:
    server = table(1 << 30)
    for number in range(MAX_SESSIONS):
        server.open(opening(f"{number}", 1), "hog", b"", NOW)
    with pytest.raises(SessionRefused) as refusal:
        server.open(opening("one more", 1), "hog", b"", NOW)
    assert refusal.value.code == "too_many"
    server.open(opening("0", 1, epoch=2), "hog", b"", NOW)  # one that it has may go on
    server.open(opening("mine", 1), "other", b"", NOW)
    for address in ("127. .0.1:9", "nowhere", "tcp://127.0.0.1:1", "127.0.0.1:0", ""):
        with pytest.raises(SessionRefused) as refusal:
            server.open(opening("x", 1, address=address), "other", b"", NOW)
        assert refusal.value.code == "bad_route"


def test_a_client_that_left_gives_way_at_once_and_leaves_for_good_a_little_later() -> None:
    server = table()
    session, _ = server.open(opening("mine", 1000), "one", b"", NOW)
    with pytest.raises(SessionRefused):
        server.open(opening("theirs", 1000), "other", b"", NOW)
    session.disconnected_at = NOW
    assert not server.expired(NOW + 1) and server.status(NOW, False).available_tokens == 1000
    assert server.expired(NOW + 16) == [session]
    _, gone = server.open(opening("theirs", 1000), "other", b"", NOW)
    assert gone == [session]
