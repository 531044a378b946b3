"""Passing the bytes of one TCP connection on to another, in a thread of its own beside ZeroMQ's.

Any asyncio loop will do, Windows' Proactor included, because no ZeroMQ socket is polled here.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

LIMIT = 64 << 10  # bytes; a connection that is read faster than the other takes them is paused at twice as many
IDLE = 60.0  # s without a byte either way; ZeroMQ's heartbeats come every few
BACKLOG = 256  # connections that wait to be accepted
FLUSH = 5.0  # s for the last bytes to be taken


class SplicedStream(NamedTuple):
    """A TCP connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


async def connect(host: str, port: int, timeout: float) -> SplicedStream:
    """Raises: OSError: no host answers (TimeoutError: within `timeout` seconds)."""
    async with asyncio.timeout(timeout):
        return SplicedStream(*await asyncio.open_connection(host, port, limit=LIMIT))


async def close(stream: SplicedStream) -> None:
    """Close, and cut off a side that does not take what is still under way to it."""
    stream.writer.close()
    try:
        async with asyncio.timeout(FLUSH):
            await stream.writer.wait_closed()
    except (OSError, asyncio.CancelledError) as error:
        stream.writer.transport.abort()
        if isinstance(error, asyncio.CancelledError):
            raise


async def serve(listening: socket.socket, handle: Callable[[SplicedStream], Awaitable[None]]) -> None:
    """Let `handle` have each connection until this is cancelled; a connection is closed when it returns.

    An OSError of a connection, and its early end, are the end of that one.
    """

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = SplicedStream(reader, writer)
        # Cancelled means that the thread ends; asyncio of Python 3.11 would log that as an error.
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            try:
                await handle(stream)
            finally:
                await close(stream)

    server = await asyncio.start_server(on_connection, sock=listening, limit=LIMIT, backlog=BACKLOG)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()


async def splice(one: SplicedStream, other: SplicedStream, idle: float = IDLE) -> None:
    """Pass bytes on both ways until either side ends or nothing has moved for `idle` seconds; then close both.

    What one side does not take stops the other: no more than a few buffers are held.
    """
    loop = asyncio.get_running_loop()
    moved = loop.time()

    async def carry(source: SplicedStream, sink: SplicedStream) -> None:
        nonlocal moved
        with suppress(OSError):
            while data := await source.reader.read(LIMIT):
                moved = loop.time()
                sink.writer.write(data)
                await sink.writer.drain()

    carriers = {asyncio.create_task(carry(one, other)), asyncio.create_task(carry(other, one))}
    try:
        ended: set[asyncio.Task[None]] = set()
        while not ended and (left := moved + idle - loop.time()) > 0:
            ended, _ = await asyncio.wait(carriers, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for carrier in carriers:
            carrier.cancel()
        await asyncio.gather(*carriers, return_exceptions=True)
        await asyncio.gather(close(one), close(other))


class Background:
    """An asyncio loop in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._work: set[Future[Any]] = set()  # the loop itself does not keep what it runs alive
        # Made in its own thread: one made in the main thread takes signals on Windows, and would not give them back.
        made: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, args=(made,), name=name, daemon=True)
        self._thread.start()
        self._loop = made.result()

    def _run(self, made: Future[asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner() as runner:
            made.set_result(runner.get_loop())
            runner.get_loop().run_forever()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `work` in the loop. May be called from any thread."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._work.add(future)
        future.add_done_callback(self._work.discard)
        return future

    def close(self) -> None:
        """Cancel everything and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
