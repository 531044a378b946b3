"""Streams side by side: everything comes through, and ending early ends every source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_api.generation.merging import Quiet, merged

FOREVER = 3600.0


async def counting(upto: int, closed: list[int], name: int = 0) -> AsyncGenerator[int, None]:
    try:
        for number in range(upto):
            yield number
            await asyncio.sleep(0)
    finally:
        closed.append(name)


async def hanging(started: asyncio.Event, closed: asyncio.Event) -> AsyncGenerator[int, None]:
    try:
        started.set()
        await asyncio.Event().wait()
        yield 0
    finally:
        closed.set()


@given(st.lists(st.integers(0, 100), max_size=6), st.integers(1, 4))
def test_every_item_of_every_source_comes_through_in_its_order(lengths: list[int], at_once: int) -> None:
    async def read() -> list[tuple[int, int]]:
        closed: list[int] = []
        sources = [counting(length, closed, name) for name, length in enumerate(lengths)]
        items = [item async for item in merged(sources, at_once, FOREVER) if not isinstance(item, Quiet)]
        assert sorted(closed) == list(range(len(lengths)))
        return items

    items = asyncio.run(read())
    for name, length in enumerate(lengths):
        assert [value for source, value in items if source == name] == list(range(length))


def test_no_more_sources_run_at_once_than_asked() -> None:
    running, most = 0, 0

    async def source() -> AsyncGenerator[int, None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for number in range(3):
            await asyncio.sleep(0)
            yield number
        running -= 1

    async def read() -> int:
        return len([item async for item in merged([source() for _ in range(5)], 2, FOREVER)])

    assert asyncio.run(read()) == 15
    assert most == 2


def test_closing_ends_the_sources_first() -> None:
    async def close_early() -> None:
        started, closed = asyncio.Event(), asyncio.Event()
        async with aclosing(merged([counting(1000, []), hanging(started, closed)], 2, FOREVER)) as items:
            async for _ in items:
                if started.is_set():
                    break
        assert closed.is_set()

    asyncio.run(close_early())


def test_an_error_of_one_source_ends_all() -> None:
    async def failing(after: asyncio.Event) -> AsyncGenerator[int, None]:
        yield 1
        await after.wait()
        raise ValueError("broken")

    async def read() -> None:
        started, closed = asyncio.Event(), asyncio.Event()
        with pytest.raises(ValueError, match="broken"):
            async for _ in merged([failing(started), hanging(started, closed)], 2, FOREVER):
                continue
        assert closed.is_set()

    asyncio.run(read())


def test_silence_is_reported() -> None:
    async def read() -> None:
        started, closed = asyncio.Event(), asyncio.Event()
        async with aclosing(merged([hanging(started, closed)], 1, quiet=0.01)) as items:
            assert isinstance(await anext(items), Quiet)
            assert isinstance(await anext(items), Quiet)

    asyncio.run(read())


@pytest.mark.parametrize("steps", range(8))
def test_a_cancellation_is_not_lost_when_an_item_comes_at_the_same_time(steps: int) -> None:
    async def cancelled() -> bool:
        release = asyncio.Event()

        async def source() -> AsyncGenerator[int, None]:
            await release.wait()
            yield 1
            await asyncio.Event().wait()

        async with aclosing(merged([source()], 1, FOREVER)) as items:
            reading = asyncio.ensure_future(anext(items))
            for _ in range(5):
                await asyncio.sleep(0)
            release.set()
            for _ in range(steps):  # one of them is the moment at which the item has come and nobody has taken it
                await asyncio.sleep(0)
            asked = reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return not asked or reading.cancelled()

    assert asyncio.run(cancelled())
