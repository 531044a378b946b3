"""The planner: failures are held against one start of a server, and what is second best is better than nothing."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing import wire
from routing.planning.routes import BAN
from swarm.client.planner import Planner, Route, RouteRequest
from swarm.errors import BadRequest, Overloaded, SwarmError, Unavailable
from tests.routing.material import KEYS, server

BLOCKS = 6
HEAD, TAIL, SPARE = KEYS[:3]


def swarm(*others: wire.ServerInfo) -> list[wire.ServerInfo]:
    return [server(HEAD, 0, 3, blocks=BLOCKS), server(TAIL, 3, 6, blocks=BLOCKS), *others]


def started(known: wire.ServerInfo, instance: str) -> wire.ServerInfo:
    return msgspec.structs.replace(known, instance=instance)


def request(**wishes: object) -> RouteRequest:
    wanted: dict[str, object] = {"session": "0" * 32, "model": swarm()[0].model, "max_length": 64, **wishes}
    return RouteRequest(**wanted)  # type: ignore[arg-type]


def peers(route: Route) -> list[str]:
    return [hop.peer for hop in route]


def test_a_server_that_failed_is_avoided_until_its_ban_is_over_or_it_is_started_anew() -> None:
    planner = Planner()
    known = swarm(server(SPARE, 3, 6, blocks=BLOCKS, throughput=0.001))  # so that only a ban makes it the better one
    assert peers(planner.route(request(), known, now=0.0)) == [HEAD, TAIL]
    planner.report_failure(TAIL, known[1].instance, now=0.0)
    assert peers(planner.route(request(), known, now=1.0)) == [HEAD, SPARE]
    assert peers(planner.route(request(), known, now=BAN + 1)) == [HEAD, TAIL]
    planner.report_failure(TAIL, known[1].instance, now=BAN + 1)
    again = [known[0], started(known[1], "another"), known[2]]
    assert peers(planner.route(request(), again, now=BAN + 2)) == [HEAD, TAIL]
    assert not planner.banned(known, now=BAN + 2), "what it did before it was started anew is forgotten"


def test_a_success_ends_a_ban() -> None:
    planner = Planner()
    planner.report_failure(TAIL, "", now=0.0)
    assert TAIL in planner.banned([], now=1.0)
    planner.report_success(TAIL)
    assert not planner.banned([], now=1.0)


def test_a_server_that_failed_is_better_than_none() -> None:
    planner = Planner()
    for known in swarm():
        planner.report_failure(known.key, known.instance, now=0.0)
    assert peers(planner.route(request(), swarm(), now=0.0)) == [HEAD, TAIL]
    with pytest.raises(Unavailable, match="failed a moment ago"):
        planner.route(request(avoid=frozenset({TAIL})), swarm(), now=0.0)


def test_what_a_session_has_reserved_is_no_obstacle_to_it() -> None:
    full = [msgspec.structs.replace(known, load=wire.ServerLoad()) for known in swarm()]
    with pytest.raises(Overloaded):
        Planner().route(request(), full, now=0.0)
    assert peers(Planner().route(request(reserved=frozenset({HEAD, TAIL})), full, now=0.0)) == [HEAD, TAIL]


def test_refusals_are_errors_for_people() -> None:
    with pytest.raises(Unavailable, match="no server"):
        Planner().route(request(), swarm()[:1], now=0.0)
    with pytest.raises(BadRequest, match="1000000000"):
        Planner().route(request(max_length=10**9), swarm(), now=0.0)


def test_hops_that_have_parts_of_the_session_stay_where_that_can_be() -> None:
    known = swarm(server(SPARE, 0, 6, blocks=BLOCKS, throughput=1e9))  # alone it would be by far the fastest
    kept = (wire.Hop(TAIL, known[1].addresses, 3, 6),)
    assert peers(Planner().route(request(), known, now=0.0)) == [SPARE]
    assert Planner().route(request(keep=kept), known, now=0.0)[-1] == kept[0]
    # What stays is given up rather than the session.
    alone = [known[1], known[2]]
    assert peers(Planner().route(request(keep=kept, avoid=frozenset({TAIL})), alone, now=0.0))[0] == SPARE


@given(
    spans=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)).filter(lambda s: s[0] < s[1]), max_size=6),
    failed=st.sets(st.integers(0, 5)),
)
def test_a_route_covers_the_model_and_avoids_failures_where_it_can(
    spans: list[tuple[int, int]], failed: set[int]
) -> None:
    planner = Planner()
    known = [server(KEYS[i], *span, blocks=BLOCKS) for i, span in enumerate(spans)]
    for i in failed & set(range(len(known))):
        planner.report_failure(known[i].key, known[i].instance, now=0.0)
    banned = planner.banned(known, now=0.0).keys()
    try:
        route = planner.route(request(), known, now=0.0)
    except SwarmError:
        held = set(itertools.chain.from_iterable(range(*span) for span in spans))
        assert held != set(range(BLOCKS))
        return
    assert [hop.start for hop in route] == [0, *(hop.end for hop in route[:-1])] and route[-1].end == BLOCKS
    good = itertools.chain.from_iterable(range(s.start, s.end) for s in known if s.key not in banned)
    assert set(good) != set(range(BLOCKS)) or not banned & set(peers(route))
