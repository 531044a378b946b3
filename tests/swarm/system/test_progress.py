"""Progress of a long job, where the output is no terminal."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from swarm.system.progress import show_progress


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50))
def test_where_nobody_watches_progress_is_at_most_a_line_per_ten_percent(steps: list[int]) -> None:
    stream = io.StringIO()
    with show_progress(stream) as progress:
        for done in [*sorted(steps), 10**9]:
            progress("m", done, 10**9)
        progress("unknown", 5, 0)
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 10 and len(set(lines)) == len(lines)
    assert lines[-1] == "m: 100 % of 1.0 GB"
