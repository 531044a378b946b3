from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.limits import RateLimit
from tests.routing.material import Clock

rates = st.floats(0.1, 100)
bursts = st.floats(0.5, 50)
asked = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 60)), max_size=60)  # seconds since the last, cost


@given(rates, bursts, asked)
def test_what_is_let_through_never_exceeds_burst_and_rate(
    rate: float, burst: float, asked: list[tuple[float, float]]
) -> None:
    clock = Clock()
    limit = RateLimit(rate, burst, clock)
    let_through: list[tuple[float, float]] = []
    for pause, cost in asked:
        clock.now += pause
        if limit.spend("peer", cost) == 0:
            let_through.append((clock.now, min(cost, burst)))
    for first, (since, _) in enumerate(let_through):
        for last, (until, _) in enumerate(let_through[first:], first):
            spent = sum(cost for _, cost in let_through[first : last + 1])
            assert spent <= burst + rate * (until - since) + 1e-6


@given(rates, bursts, asked)
def test_who_waits_as_long_as_told_is_let_through(rate: float, burst: float, asked: list[tuple[float, float]]) -> None:
    clock = Clock()
    limit = RateLimit(rate, burst, clock)
    for pause, cost in asked:
        clock.now += pause
        wait = limit.spend("peer", cost)
        if wait:
            clock.now += wait + 1e-6
            assert limit.spend("peer", cost) == 0


def test_keys_do_not_share_and_only_so_many_are_remembered() -> None:
    clock = Clock()
    limit = RateLimit(1.0, 1.0, clock, max_keys=2)
    assert limit.spend("a") == 0 and limit.spend("a") == 1.0
    assert limit.spend("b") == 0 and limit.spend("c") == 0  # the third: `a` is forgotten
    assert len(limit) == 2
    assert limit.spend("c") == 1.0 and limit.spend("a") == 0
    limit.forget("a")
    assert limit.spend("a") == 0
    clock.now -= 100  # a clock that does jump gives nobody anything
    assert limit.spend("a") == 1.0


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (math.nan, 1, 1)])
def test_a_limit_that_is_none_is_refused(numbers: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="no rate limit"):
        RateLimit(numbers[0], numbers[1], max_keys=numbers[2])
