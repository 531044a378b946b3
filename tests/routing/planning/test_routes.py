from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import wire
from routing.planning.routes import BAN, LONGEST_BAN, Bans, NoRoute, RouteQuery, coverage, missing, plan
from routing.planning.shortest_path import Edge, Leg, Reach, shortest
from routing.relay.rules import relay_address
from tests.routing.material import KEYS, server

BLOCKS = 7

spans = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, BLOCKS)).map(lambda s: (s[0], min(s[0] + s[1], BLOCKS)))
wide = st.integers(0, 9).map(lambda cost: Reach(0, BLOCKS, cost))  # the ones that a walk likes to come back to
reaches = st.lists(
    wide | st.builds(lambda span, cost: Reach(span[0], span[1], cost), spans, st.integers(0, 9)), max_size=5
)
edges = st.sampled_from([1, 4, 20]).flatmap(lambda most: st.lists(st.integers(0, most), min_size=36, max_size=36))


def edge_of(table: list[int]) -> Edge:
    """Costs between five spans and the side that asks, which need not obey the triangle inequality."""
    return lambda one, other: table[(5 if one is None else one) * 6 + (5 if other is None else other)]


def chains(reaches: list[Reach], cuts: list[int], start: int, end: int, used: tuple[int, ...]) -> Iterator[list[Leg]]:
    """Every chain over `start:end` that uses no span twice."""
    if start == end:
        yield []
    for which, reach in enumerate(reaches):
        if which in used or not reach.start <= start < reach.end:
            continue
        for cut in cuts:
            if start < cut <= min(reach.end, end):
                for rest in chains(reaches, cuts, cut, end, (*used, which)):
                    yield [Leg(which, start, cut), *rest]


def cost_of(chain: list[Leg], reaches: list[Reach], edge: Edge) -> int:
    hops: list[int | None] = [None, *(leg.which for leg in chain), None]
    return sum(edge(one, other) for one, other in itertools.pairwise(hops)) + sum(
        (leg.end - leg.start) * reaches[leg.which].cost for leg in chain
    )


@settings(max_examples=400)
@given(reaches, edges, st.booleans())
def test_the_chain_is_the_cheapest_of_all(reaches: list[Reach], table: list[int], bounded: bool) -> None:
    edge = edge_of(table)
    chain = shortest(reaches, 0, BLOCKS, edge, min(table) if bounded else 0)
    cuts = sorted({0, BLOCKS, *(bound for reach in reaches for bound in (reach.start, reach.end))})
    all_chains = list(chains(reaches, cuts, 0, BLOCKS, ()))
    if chain is None:
        assert not all_chains
    else:
        assert chain in all_chains
        assert cost_of(chain, reaches, edge) == min(cost_of(other, reaches, edge) for other in all_chains)


@pytest.mark.parametrize(
    ("third", "chain"),
    [
        (Reach(0, 1, 6), [Leg(2, 0, 1), Leg(1, 1, 2), Leg(0, 2, 3)]),
        (Reach(2, 3, 6), [Leg(0, 0, 1), Leg(1, 1, 2), Leg(2, 2, 3)]),
        (Reach(0, 3, 9), [Leg(0, 0, 1), Leg(1, 1, 2), Leg(2, 2, 3)]),
        (Reach(0, 3, 99), [Leg(0, 0, 3)]),
    ],
)
def test_a_span_is_used_in_one_piece_wherever_that_is_cheapest(third: Reach, chain: list[Leg]) -> None:
    """A walk would take the first span, the second, and the first again."""
    assert shortest([Reach(0, 3, 5), Reach(1, 2, 0), third], 0, 3, lambda one, other: 0) == chain


def test_a_direct_way_is_preferred_to_one_through_a_router_unless_it_is_far_longer() -> None:
    direct, relayed = server(KEYS[0]), server(KEYS[1])
    only_relayed = server(KEYS[1], addresses=(relay_address("10.0.0.1:7701", KEYS[1]),))

    def chosen(servers: list[wire.ServerInfo], to_direct: float, found_relayed: frozenset[str] = frozenset()) -> str:
        query = RouteQuery(
            "toy", latency=lambda one, other: to_direct if other == KEYS[0] else 0.0, relayed=found_relayed
        )
        return plan(servers, 12, query)[0].peer

    assert chosen([direct, relayed], to_direct=0.02) == KEYS[1]
    assert chosen([direct, relayed], to_direct=0.02, found_relayed=frozenset({KEYS[1]})) == KEYS[0]
    assert chosen([direct, only_relayed], to_direct=0.02) == KEYS[0]
    assert chosen([direct, only_relayed], to_direct=0.5) == KEYS[1]
    assert chosen([only_relayed], to_direct=0.0) == KEYS[1]


def test_a_swarm_made_to_be_hard_still_gets_a_chain() -> None:
    """Slow spans over everything and fast islands in them: the cheapest walk would return to the slow ones always."""
    blocks = 80
    slow = [Reach(0, blocks, 1000) for _ in range(12)]
    fast = [Reach(at, at + 1, 0) for at in range(0, blocks, 2)]
    chain = shortest([*slow, *fast], 0, blocks, lambda one, other: 1)
    assert chain is not None
    assert len({leg.which for leg in chain}) == len(chain)
    assert [leg.start for leg in chain] == [0, *(leg.end for leg in chain[:-1])] and chain[-1].end == blocks


@st.composite
def swarms(draw: st.DrawFn) -> list[wire.ServerInfo]:
    return [
        server(
            key,
            *draw(spans),
            blocks=BLOCKS,
            model=draw(st.sampled_from(["toy", "toy", "toy", "other"])),
            state=draw(st.sampled_from(["ready", "ready", "ready", "joining", "draining"])),
            throughput=draw(st.sampled_from([0.0, 1.0, 100.0])),
            sessions=draw(st.integers(0, 3)),
            kv_tokens=draw(st.sampled_from([50, 100])),
            kv_free=draw(st.sampled_from([50, 50, 10])),
            protocol=draw(st.sampled_from(["ring", "ring", "ring", "petals"])),
        )
        for key in KEYS[: draw(st.integers(0, 5))]
    ]


queries = st.builds(
    RouteQuery,
    model=st.just("toy"),
    max_length=st.sampled_from([0, 20, 60, 200]),
    bans=st.dictionaries(st.sampled_from(KEYS), st.sampled_from([5.0, 15.0]), max_size=2),
    avoid=st.frozensets(st.sampled_from(KEYS), max_size=1),
    now=st.just(10.0),
    seed=st.none() | st.integers(0, 99),
)


@settings(max_examples=300)
@given(swarms(), queries)
def test_a_plan_covers_every_block_once_or_says_which_it_cannot(
    servers: list[wire.ServerInfo], query: RouteQuery
) -> None:
    usable = {
        s.key: s
        for s in servers
        if s.model == "toy"
        and s.state == "ready"
        and s.load.kv_free >= query.max_length
        and s.kv_tokens >= query.max_length
        and query.bans.get(s.key, 0.0) <= query.now
        and s.key not in query.avoid
        and s.protocol == "ring"
    }
    covered = {block for s in usable.values() for block in range(s.start, s.end)}
    try:
        route = plan(servers, BLOCKS, query)
    except NoRoute as error:
        assert covered != set(range(BLOCKS))
        lacking = {block for start, end in error.missing for block in range(start, end)}
        assert lacking and lacking <= set(range(BLOCKS)) - covered
        assert "\n" not in str(error)
        assert (error.retry_after is not None) == (error.code in ("not_ready", "full", "failed"))
    else:
        assert [hop.start for hop in route] == [0, *(hop.end for hop in route[:-1])] and route[-1].end == BLOCKS
        assert len({hop.peer for hop in route}) == len(route)
        for hop in route:
            assert usable[hop.peer].start <= hop.start < hop.end <= usable[hop.peer].end
            assert hop.addresses == usable[hop.peer].addresses
        assert route == plan(servers[::-1], BLOCKS, query)


def route_of(*servers: wire.ServerInfo, **query: object) -> list[tuple[str, int, int]]:
    hops = plan(servers, 12, RouteQuery("toy", **query))  # type: ignore[arg-type]
    return [(hop.peer, hop.start, hop.end) for hop in hops]


A, B, C = KEYS[:3]


def test_a_route_prefers_the_fast_the_near_the_idle_and_few_hops() -> None:
    whole, fast = server(A), server(B, throughput=200.0)
    assert route_of(whole, fast) == [(B, 0, 12)]
    assert route_of(whole, server(B, sessions=4)) == [(A, 0, 12)]
    assert route_of(server(A, 0, 6), server(B, 6, 12), server(C)) == [(C, 0, 12)]
    far = {A: 0.5, B: 0.01}
    assert route_of(whole, server(B), latency=lambda one, other: far[other]) == [(B, 0, 12)]
    # A slow server that holds everything lends the blocks that the fast ones lack.
    slow = server(A, throughput=1.0)
    assert route_of(slow, server(B, 3, 8), server(C, 8, 12)) == [(A, 0, 3), (B, 3, 8), (C, 8, 12)]


def test_sessions_spread_over_equal_servers() -> None:
    servers = [server(key) for key in KEYS]
    assert len({route_of(*servers)[0][0] for _ in range(20)}) == 1
    assert {route_of(*servers, seed=seed)[0][0] for seed in range(100)} == set(KEYS)


@pytest.mark.parametrize(
    ("servers", "query", "code", "spans", "words"),
    [
        ([], {}, "unserved", ((0, 12),), "no server of the swarm has 'toy'"),
        ([server(A, 2, 5)], {}, "unserved", ((0, 2), (5, 12)), "no server has blocks 0:2 and 5:12"),
        ([server(blocks=24)], {}, "unserved", ((0, 12),), "no server of the swarm"),
        ([server(A, state="joining")], {}, "not_ready", ((0, 12),), "loading or leaving"),
        ([server(A, protocol="petals")], {}, "unserved", ((0, 12),), "no server of the swarm"),
        ([server(A, 0, 6), server(B, 6, 12, kv_tokens=9)], {"max_length": 10}, "too_long", ((6, 12),), "--kv-tokens"),
        ([server(A, kv_free=9)], {"max_length": 10}, "full", ((0, 12),), "no room for 10 tokens now"),
        ([server(A)], {"bans": {A: 30.0}, "now": 10.0}, "failed", ((0, 12),), "again in 20 s"),
        ([server(A)], {"avoid": frozenset({A})}, "failed", ((0, 12),), "failed a moment ago"),
    ],
)
def test_no_route_says_what_is_missing_and_why(
    servers: list[wire.ServerInfo], query: dict[str, object], code: str, spans: object, words: str
) -> None:
    with pytest.raises(NoRoute, match=words) as caught:
        route_of(*servers, **query)
    assert (caught.value.code, caught.value.missing) == (code, spans)


@given(swarms(), st.integers(1, BLOCKS))
def test_coverage_counts_ready_servers(servers: list[wire.ServerInfo], blocks: int) -> None:
    replicas = coverage(servers, blocks)
    assert replicas == [sum(s.start <= block < s.end for s in servers if s.state == "ready") for block in range(blocks)]
    gaps = missing(servers, blocks)
    assert {b for start, end in gaps for b in range(start, end)} == {b for b, n in enumerate(replicas) if n == 0}
    assert all(one[1] < other[0] for one, other in itertools.pairwise(gaps))


@given(st.lists(st.tuples(st.sampled_from("xy"), st.booleans(), st.floats(0, 2000)), max_size=30))
def test_bans_double_until_a_success(history: list[tuple[str, bool, float]]) -> None:
    bans, now = Bans(), 0.0
    failures: dict[str, tuple[int, float]] = {}
    for key, success, pause in history:
        now += pause
        count, until = failures.get(key, (0, -math.inf))
        if success:
            bans.clear(key)
            failures.pop(key, None)
        elif now < until:
            assert bans.ban(key, now) == until  # more failures of the same moment
        else:
            count = 0 if now >= until + LONGEST_BAN else count
            failures[key] = count + 1, now + min(BAN * 2**count, LONGEST_BAN)
            assert bans.ban(key, now) == failures[key][1]
        assert bans.active(now) == {k: end for k, (_, end) in failures.items() if now < end}


@given(held=st.lists(spans, min_size=1, max_size=8), lost=st.sets(st.integers(0, 5)))
def test_a_repaired_route_keeps_the_survivors_and_fills_the_gaps(held: list[tuple[int, int]], lost: set[int]) -> None:
    servers = [server(key, start, end, blocks=BLOCKS) for key, (start, end) in zip(KEYS, held, strict=False)]
    blocks, query = BLOCKS, RouteQuery(servers[0].model, seed=3)
    try:
        route = plan(servers, blocks, query)
    except NoRoute:
        return
    kept = tuple(hop for number, hop in enumerate(route) if number not in lost)
    dead = {hop.peer for hop in route} - {hop.peer for hop in kept}
    left = [server for server in servers if server.key not in dead]
    try:
        mended = plan(left, blocks, query, kept)
    except NoRoute as error:
        assert error.missing and all(0 <= start < end <= blocks for start, end in error.missing)
        return
    assert set(kept) <= set(mended)
    assert [hop.start for hop in mended] == [0, *[hop.end for hop in mended[:-1]]] and mended[-1].end == blocks
    assert len({hop.peer for hop in mended}) == len(mended) and not dead & {hop.peer for hop in mended}
    by_key = {server.key: server for server in servers}
    assert all(by_key[hop.peer].start <= hop.start and hop.end <= by_key[hop.peer].end for hop in mended)
    assert plan(servers, blocks, query, route) == route
