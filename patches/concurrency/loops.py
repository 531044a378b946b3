"""Event loops in threads, and iterators over what arrives in them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class LoopThread:
    """An event loop in a daemon thread of its own: asyncio's own kind, not uvloop, which Windows does not have."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class RemoteExpertWorker:
    """The loop in which upstream's clients talk to servers; made on first use, one for the whole process."""

    _thread: ClassVar[LoopThread | None] = None
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def run_coroutine(cls, coro: Awaitable[T], return_future: bool = False) -> T | Future[T]:
        """Run it there; wait for its result unless `return_future`."""
        with cls._lock:
            if cls._thread is None:
                cls._thread = LoopThread("petals-client")

        async def run() -> T:
            return await coro

        future = cls._thread.submit(run())
        return future if return_future else future.result()


@asynccontextmanager
async def enter_asynchronously(context: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter a context that blocks (a lock) without blocking the loop."""
    entering = asyncio.get_running_loop().run_in_executor(None, context.__enter__)
    try:
        entered = await asyncio.shield(entering)
    except asyncio.CancelledError:
        entering.add_done_callback(lambda done: done.exception() or context.__exit__(None, None, None))
        raise
    try:
        yield entered
    finally:
        context.__exit__(None, None, None)


async def amap_in_executor(function: Callable[[T], U], items: AsyncIterable[T]) -> AsyncIterator[U]:
    """`function` of each item, computed in a thread, in order."""
    loop = asyncio.get_running_loop()
    async for item in items:
        yield await loop.run_in_executor(None, function, item)


async def iter_as_aiter(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


async def aiter_with_timeout(items: AsyncIterable[T], timeout: float | None) -> AsyncIterator[T]:
    """The same items. Raises: TimeoutError: one took longer than `timeout` seconds."""
    iterator = aiter(items)
    while True:
        try:
            item = await asyncio.wait_for(anext(iterator), timeout)
        except StopAsyncIteration:
            return
        yield item
