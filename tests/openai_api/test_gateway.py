"""The gateway's own work, apart from HTTP."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from openai_api.accounts.usage import WorkRecord
from openai_api.gateway import Gateway
from openai_api.generation.prompt_logprobs import PART, logprobs_of, scored
from routing import wire
from swarm import ServedModel, SwarmError
from swarm.sampling import Sampling, pick


def test_tokenizers_are_fetched_as_soon_as_models_are_complete() -> None:
    """Each once, and trouble with one does not keep the others from being fetched."""

    async def run() -> None:
        models: list[ServedModel] = []
        asked: asyncio.Queue[str] = asyncio.Queue()

        async def tokenizer(name: str) -> None:
            await asked.put(name)
            raise SwarmError("no server answers")

        engine: Any = SimpleNamespace(models=lambda: list(models), tokenizer=tokenizer)
        task = asyncio.create_task(Gateway(engine).prefetch(pause=0))
        models.append(ServedModel("half", 4, 0, (), ((2, 4),)))
        models.append(ServedModel("a", 4, 0, (), ()))
        assert await asked.get() == "a"
        models.append(ServedModel("b", 4, 0, (), ()))
        assert await asked.get() == "b"
        models[0] = ServedModel("half", 4, 0, (), ())
        assert await asked.get() == "half"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert asked.empty()

    asyncio.run(run())


logits = arrays.arrays(np.float32, (3, 9), elements=st.floats(-50, 50, width=32))


@given(logits, st.lists(st.integers(0, 8), min_size=3, max_size=3), st.integers(0, 12))
def test_a_prompts_log_probabilities_are_those_of_sampling(
    rows: np.ndarray[Any, Any], tokens: list[int], top: int
) -> None:
    for row, token, (logprob, best) in zip(rows, tokens, logprobs_of(rows, tokens, top), strict=True):
        forced = Sampling(logprobs=top, logit_bias={token: 1000.0})
        wanted = pick(row, forced, 0)
        assert wanted.token == token
        assert logprob == pytest.approx(wanted.logprob)
        assert [value for _, value in best] == pytest.approx([value for _, value in wanted.top])
        assert [row[i] for i, _ in best] == pytest.approx([row[i] for i, _ in wanted.top])


class Steps:
    """A session in which the next token is the last one plus 1 for certain, on a vocabulary of 1000."""

    route = (wire.Hop("server", (), 0, 30),)

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.open = False

    async def __aenter__(self) -> Steps:
        self.open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open = False

    async def step(self, ids: tuple[int, ...]) -> np.ndarray[Any, Any]:
        self.lengths.append(len(ids))
        rows = np.full((len(ids), 1000), -100, np.float32)
        rows[np.arange(len(ids)), np.asarray(ids) + 1] = 100
        return rows


@pytest.mark.parametrize("length", [1, 2, PART, PART + 1, PART + 2, 3 * PART])
def test_a_prompt_is_scored_in_parts(length: int) -> None:
    session = Steps()
    engine: Any = SimpleNamespace(session=lambda model, max_length: session)
    ids, work = tuple(range(length)), WorkRecord()
    entries = asyncio.run(scored(engine, "m", ids, 1, ids, work))
    assert [entry.token for entry in entries] == list(ids)
    assert [entry.offset for entry in entries] == list(ids)
    assert entries[0].logprob is None
    assert [entry.logprob for entry in entries[1:]] == pytest.approx([0.0] * (length - 1))
    assert [entry.top[0][0] for entry in entries[1:]] == list(ids[1:])
    assert sum(work.by_server.values()) == 30 * sum(session.lengths) and work.generated == 0
    assert max(session.lengths, default=0) <= PART
    assert not session.open
