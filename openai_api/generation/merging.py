"""Several streams read side by side as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing has come for a while."""


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None


async def merged(
    sources: Sequence[AsyncGenerator[T, None]], at_once: int, quiet: float
) -> AsyncGenerator[tuple[int, T] | Quiet, None]:
    """The items of all sources with the source's number, as they come; `Quiet` after each `quiet` seconds of silence.

    The first error ends everything and is raised. Closing this generator closes every source before it returns.

    Args:
        at_once: how many sources are read at the same time; the others wait until one has ended.
    """
    queue: asyncio.Queue[tuple[int, T] | _End] = asyncio.Queue(maxsize=64)
    gate = asyncio.Semaphore(at_once)

    async def read(number: int, source: AsyncGenerator[T, None]) -> None:
        error: Exception | None = None
        try:
            async with gate, aclosing(source):
                async for item in source:
                    await queue.put((number, item))
        except Exception as raised:  # noqa: BLE001 - whatever it is, it is raised where the items are read
            error = raised
        await queue.put(_End(error))

    tasks = [asyncio.create_task(read(number, source)) for number, source in enumerate(sources)]
    left = len(tasks)
    try:
        while left:
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation that comes together with an item.
                async with asyncio.timeout(quiet):
                    item = await queue.get()
            except TimeoutError:
                yield Quiet()
                continue
            if not isinstance(item, _End):
                yield item
            elif item.error is not None:
                raise item.error
            else:
                left -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
