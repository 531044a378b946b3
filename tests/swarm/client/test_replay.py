"""Feeding a newcomer: what is kept of the outputs, and where each hop starts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.replay import starts
from swarm.server.activation_cache import ActivationCache

hops = st.lists(st.integers(0, 50).flatmap(lambda c: st.tuples(st.just(c), st.integers(0, c))), min_size=1, max_size=6)


@given(hops)
def test_every_hop_gets_what_it_lacks_and_nothing_is_computed_without_need(state: list[tuple[int, int]]) -> None:
    cached, held = [c for c, _ in state], [h for _, h in state]
    at = starts(cached, held)
    assert at[-1] == cached[-1]
    for hop in range(len(state) - 1):
        assert at[hop] <= cached[hop], "a hop cannot start beyond its cache"
        first_given = at[hop] if at[hop + 1] >= at[hop] else held[hop]
        assert first_given <= at[hop + 1], "the next hop would miss something"
        needed = at[hop + 1] < held[hop]
        assert at[hop] == (min(cached[hop], at[hop + 1]) if needed else cached[hop]), "computed without need"


@given(
    actions=st.lists(
        st.tuples(
            st.sampled_from(["add", "truncate", "drop"]), st.sampled_from("ab"), st.integers(0, 12), st.integers(1, 5)
        ),
        max_size=40,
    ),
    budget=st.integers(0, 60),
    length=st.integers(1, 7),
)
def test_outputs_are_given_back_as_they_were_within_the_budget(
    actions: list[tuple[str, str, int, int]], budget: int, length: int
) -> None:
    outputs = ActivationCache(budget * 8)
    model: dict[str, dict[int, int]] = {"a": {}, "b": {}}
    for number, (action, session, position, count) in enumerate(actions):
        known = model[session]
        if action == "add":
            batch = np.arange(2 * (count + 2), dtype=np.float32).reshape(-1, 2) + 1000 * number
            rows = batch[1 : 1 + count]
            outputs.add(session, position, rows)
            model[session] = {p: v for p, v in known.items() if p < position}
            model[session] |= {position + i: int(rows[i, 0]) for i in range(count)}
        elif action == "truncate":
            outputs.truncate(session, position)
            model[session] = {p: v for p, v in known.items() if p < position}
        else:
            outputs.drop(session)
            model[session] = {}
        assert outputs.size <= budget * 8
        for name in "ab":
            for end in range(15):
                start = outputs.start(name, end)
                if start == end:
                    continue
                parts = list(outputs.parts(name, start, end, length))
                assert all(len(rows) <= length for _, rows in parts)
                got = {at + i: int(rows[i, 0]) for at, rows in parts for i in range(len(rows))}
                assert got == {p: model[name][p] for p in range(start, end)}
    with pytest.raises(KeyError):
        next(outputs.parts("a", 0, 1000, 1))
