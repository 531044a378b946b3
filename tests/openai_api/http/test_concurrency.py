"""How many requests are answered at once and how many wait; nobody is forgotten, and no place is lost."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_api.errors import ApiError
from openai_api.http.concurrency import RequestQueue


async def hold(room: RequestQueue, leave: asyncio.Event, order: list[int], number: int) -> None:
    async with room.slot():
        order.append(number)
        await leave.wait()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_those_who_wait_are_served_in_their_order_and_the_rest_is_refused() -> None:
    async def run() -> None:
        room, order = RequestQueue(at_once=2, waiting=3), []
        leave = [asyncio.Event() for _ in range(5)]
        tasks = [asyncio.create_task(hold(room, leave[number], order, number)) for number in range(5)]
        await turns()
        assert order == [0, 1] and (room.in_progress, room.waiting) == (2, 3)
        with pytest.raises(ApiError) as refused:
            async with room.slot():
                raise AssertionError("there was no room")
        assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) >= 1
        for event in leave:
            event.set()
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4] and (room.in_progress, room.waiting) == (0, 0)

    asyncio.run(run())


def test_who_waits_too_long_is_refused_and_leaves_no_trace() -> None:
    async def run() -> None:
        room, leave = RequestQueue(at_once=1, waiting=2, patience=0.01), asyncio.Event()
        holder = asyncio.create_task(hold(room, leave, [], 0))
        await turns()
        with pytest.raises(ApiError) as refused:
            async with room.slot():
                raise AssertionError("there was no room")
        assert refused.value.status == 429 and room.waiting == 0
        leave.set()
        await holder
        async with room.slot():
            assert room.in_progress == 1

    asyncio.run(run())


@given(st.lists(st.tuples(st.sampled_from(["come", "leave", "cancel"]), st.integers(0, 30)), max_size=60))
def test_no_place_is_lost_whatever_happens(steps: list[tuple[str, int]]) -> None:
    async def run() -> None:
        room, order = RequestQueue(at_once=2, waiting=4), []
        tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for kind, number in steps:
            if kind == "come":
                leave = asyncio.Event()
                tasks.append((asyncio.create_task(hold(room, leave, order, len(tasks))), leave))
            elif tasks and kind == "leave":
                tasks[number % len(tasks)][1].set()
            elif tasks:
                tasks[number % len(tasks)][0].cancel()
            if number % 3:  # otherwise several things happen before anybody notices
                await turns()
            assert room.in_progress <= 2 and room.waiting <= 4
        for _, leave in tasks:
            leave.set()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)
        assert (room.in_progress, room.waiting) == (0, 0)

    asyncio.run(run())
