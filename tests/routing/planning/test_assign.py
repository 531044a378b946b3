from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.planning.assign import THRESHOLD, capacity, choose_span

throughputs = st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0, 7.5]), min_size=1, max_size=24)


@given(throughputs, st.integers(1, 30))
def test_the_window_is_the_weakest_one(coverage: list[float], blocks: int) -> None:
    start, end = choose_span(coverage, blocks)
    size = min(blocks, len(coverage))
    assert 0 <= start < end <= len(coverage) and end - start == size
    windows = [coverage[at : at + size] for at in range(len(coverage) - size + 1)]
    assert sorted(coverage[start:end]) == min(map(sorted, windows))
    assert coverage[start:end].count(0.0) == max(window.count(0.0) for window in windows)


@given(throughputs, st.integers(1, 30))
def test_among_equal_windows_the_gap_stays_in_one_piece(coverage: list[float], blocks: int) -> None:
    start, end = choose_span(coverage, blocks)
    size = end - start

    def open_ends(at: int) -> int:
        return sum(0 <= beside < len(coverage) and coverage[beside] == 0 for beside in (at - 1, at + size))

    for at in range(len(coverage) - size + 1):
        if sorted(coverage[at : at + size]) == sorted(coverage[start:end]):
            assert (open_ends(start), start) <= (open_ends(at), at)


@given(st.integers(1, 60), st.lists(st.tuples(st.integers(1, 20), st.sampled_from([0.5, 1.0, 3.0])), min_size=1))
def test_servers_that_together_are_large_enough_cover_the_model(blocks: int, servers: list[tuple[int, float]]) -> None:
    coverage = [0.0] * blocks
    for size, speed in servers:
        start, end = choose_span(coverage, size)
        for block in range(start, end):
            coverage[block] += speed
    assert coverage.count(0.0) == max(blocks - sum(size for size, _ in servers), 0)


def test_a_gap_that_fits_is_closed_before_a_larger_one_is_begun() -> None:
    assert choose_span([0.0, 0.0, 0.0, 1.0, 0.0, 0.0], 2) == (4, 6)
    assert choose_span([1.0] * 12, 6) == (0, 6)


def test_a_deep_model_is_no_trouble() -> None:
    coverage = [float(block * 7 % 13) for block in range(800)]
    assert choose_span(coverage, 400)[1] <= 800
    assert choose_span([0.0] * 800, 10_000) == (0, 800)


@pytest.mark.parametrize(("coverage", "blocks"), [([], 1), ([1.0], 0), ([1.0], -1)])
def test_there_is_no_span_of_nothing(coverage: list[float], blocks: int) -> None:
    with pytest.raises(ValueError, match="no span"):
        choose_span(coverage, blocks)


sizes = st.integers(0, 1 << 40)


@given(sizes, st.integers(1, 1 << 34), sizes, st.integers(0, 1 << 20), st.integers(0, 1 << 20), sizes)
def test_as_many_blocks_as_fit(free: int, block: int, edge: int, kv: int, tokens: int, reserve: int) -> None:
    blocks = capacity(free, block, edge, kv, tokens, reserve)

    def needed(count: int) -> int:
        return edge + reserve + count * (block + kv * tokens)

    assert blocks == 0 or needed(blocks) <= free
    assert needed(blocks + 1) > free


def test_a_block_takes_memory() -> None:
    with pytest.raises(ValueError, match="memory"):
        capacity(1 << 30, 0, 0, 0, 100)


spans = st.tuples(st.integers(0, 23), st.integers(1, 24)).filter(lambda span: span[0] < span[1])


@given(throughputs, st.integers(1, 30), spans)
def test_a_server_that_comes_back_takes_its_last_span_where_it_is_about_as_good(
    coverage: list[float], blocks: int, last: tuple[int, int]
) -> None:
    best, taken = choose_span(coverage, blocks), choose_span(coverage, blocks, last)
    assert taken in (best, last)
    assert choose_span(coverage, blocks, best) == best
    if taken == last:
        old, new = coverage[slice(*last)], coverage[slice(*best)]
        assert len(old) <= len(new) and old.count(0) >= new.count(0)
        assert min(old) <= min(new) * (1 + THRESHOLD)
