from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backends import Span
from swarm.server.scheduler import Scheduler, Work, pack

works = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 40), st.integers(0, 40), st.sampled_from([Span(0, 3), Span(1, 3)])),
    max_size=20,
)


@given(plan=works, budget=st.integers(1, 30), batched=st.booleans())
def test_all_work_is_done_once_in_order_within_the_budget(
    plan: list[tuple[int, int, int, Span]], budget: int, batched: bool
) -> None:
    scheduler = Scheduler(budget, batched)
    added: dict[str, list[int]] = {}
    owed: dict[str, int] = {}
    spans: dict[str, Span] = {}
    for number, length, outputs, span in plan:
        session = str(number)
        spans.setdefault(session, span)
        position = len(added.setdefault(session, []))
        ids = np.arange(position, position + length, dtype=np.int32)
        outputs = min(outputs, length)
        owed[session] = owed.get(session, 0) + outputs
        scheduler.add(Work(session, 1, position, ids, spans[session], outputs))
        added[session] += ids.tolist()
    done: dict[str, list[int]] = {session: [] for session in added}
    returned = dict.fromkeys(owed, 0)
    while not scheduler.all_held(lambda work: False):
        taken = scheduler.take()
        batch = pack(taken)
        assert len({work.session for work in taken}) == len(taken) and (batched or len(taken) == 1)
        assert {work.span for work in taken} == {batch.span}
        prompts = [work.length for work in taken if work.length > 1]
        assert sum(prompts) <= budget
        at = 0
        for row in batch.rows:
            assert row.position == len(done[row.session])
            done[row.session] += batch.inputs[at : at + row.length].tolist()
            returned[row.session] += row.outputs
            at += row.length
    assert done == added and returned == owed


def test_a_long_prompt_does_not_hold_up_a_stream() -> None:
    scheduler = Scheduler(16, batched=True)
    scheduler.add(Work("long", 1, 0, np.zeros(1000, np.int32), Span(0, 2)))
    for position in range(20):
        scheduler.add(Work("stream", 1, position, np.zeros(1, np.int32), Span(0, 2), 1))
        sessions = [work.session for work in scheduler.take()]
        assert "stream" in sessions and "long" in sessions
