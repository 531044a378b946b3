"""The asyncio client over real sockets: what is cancelled ends on every hop, and the session can be used again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swarm import AsyncClientSession, AsyncSwarmClient, SwarmError
from tests.swarm.live import MODEL, Live, directory, serving
from tests.swarm.toy import BLOCKS, greedy, logits

PROMPT = [1, 2, 3]
LONG = 4000  # tokens; nothing here waits for that many
SPLIT = 3

Scenario = Callable[[AsyncSwarmClient, AsyncClientSession], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Live]]]:
    folder: Path = tmp_path_factory.mktemp("directory")
    with ExitStack() as resources:
        token = resources.enter_context(directory(folder)).token
        spans = ((0, SPLIT), (SPLIT, BLOCKS))
        servers = [resources.enter_context(serving(token, *span, kv_tokens=3 * LONG)) for span in spans]
        yield str(token), servers


def play(swarm: tuple[str, list[Live]], scenario: Scenario) -> None:
    """Runs the scenario with a session, and sees that it left nothing behind."""

    async def main() -> None:
        async with AsyncSwarmClient(swarm[0]) as client:
            await client.wait_complete(MODEL)
            async with client.session(MODEL, LONG) as session:
                await asyncio.wait_for(scenario(client, session), 60)

    asyncio.run(main())
    for live in swarm[1]:
        live.wait(lambda live=live: not live.stage.cache)  # type: ignore[misc]


async def assert_usable(swarm: tuple[str, list[Live]], session: AsyncClientSession) -> None:
    """The session goes on where its user is, and the hops hold that and no more: what was cancelled has ended."""
    before = session.ids
    found = await session.step([5])
    np.testing.assert_allclose(found, logits([*before, 5])[-1:], rtol=1e-4, atol=1e-4)
    for live in swarm[1]:
        assert [len(kept) for kept in live.stage.cache.values()] == [len(before) + 1]
    tokens = [token async for token in session.stream([6], 5)]
    assert tokens == greedy([*before, 5, 6], 5)


@pytest.mark.parametrize("taken", [1, 7])
def test_a_stream_that_is_closed_stops_on_every_hop(swarm: tuple[str, list[Live]], taken: int) -> None:
    async def scenario(client: AsyncSwarmClient, session: AsyncClientSession) -> None:
        stream = session.stream(PROMPT, LONG - len(PROMPT) - 20)
        tokens = [await anext(stream) for _ in range(taken)]
        await stream.aclose()
        assert tokens == greedy(PROMPT, taken) and session.position == len(PROMPT) + taken
        await assert_usable(swarm, session)

    play(swarm, scenario)


def test_a_task_that_is_cancelled_while_it_waits_for_a_token_stops_the_stream(swarm: tuple[str, list[Live]]) -> None:
    async def scenario(client: AsyncSwarmClient, session: AsyncClientSession) -> None:
        tokens: list[int] = []
        came = asyncio.Event()

        async def read() -> None:
            async for token in session.stream(PROMPT, LONG - len(PROMPT) - 20):
                tokens.append(token)
                came.set()

        reading = asyncio.create_task(read())
        await came.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert tokens == greedy(PROMPT, len(tokens))
        await assert_usable(swarm, session)

    play(swarm, scenario)


def test_a_step_that_is_cancelled_gives_way_to_the_next(swarm: tuple[str, list[Live]]) -> None:
    async def scenario(client: AsyncSwarmClient, session: AsyncClientSession) -> None:
        await session.step(PROMPT)  # so that the hops are open, and the step that is cancelled begins at once
        for _ in range(5):
            step = asyncio.create_task(session.step([7, 8]))
            await asyncio.sleep(0)  # it has begun
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
            assert session.ids == PROMPT, "a step that was cancelled has not moved the position"
        await assert_usable(swarm, session)

    play(swarm, scenario)


def test_a_session_that_is_closed_while_it_streams_says_so(swarm: tuple[str, list[Live]]) -> None:
    async def scenario(client: AsyncSwarmClient, session: AsyncClientSession) -> None:
        stream = session.stream(PROMPT, LONG - len(PROMPT) - 20)
        await anext(stream)
        await session.close()
        with pytest.raises(SwarmError, match="closed"):
            async for _ in stream:
                pass

    play(swarm, scenario)


def test_both_faces_stream_the_same(swarm: tuple[str, list[Live]]) -> None:
    async def scenario(client: AsyncSwarmClient, session: AsyncClientSession) -> None:
        whole = [item async for item in client.stream(MODEL, PROMPT, 9)]
        assert [item.token for item in whole if hasattr(item, "token")] == greedy(PROMPT, 9)
        assert set(await client.links()) == {live.identity.public for live in swarm[1]}

    play(swarm, scenario)
