"""A TCP proxy on loopback whose connections can be made to break, as if the host behind it had vanished for a while."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from typing import Any, Self

PART = 1 << 16  # bytes


class Proxy:
    """A TCP proxy that passes on what comes to `port` (of 127.0.0.1) to `target`, by a thread of its own.

    The target may be told later, because a server has to know the proxy's port before it is started.
    """

    def __init__(self) -> None:
        self.target = 0
        self.port = 0
        self._down_until = 0.0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0)).result()
        self.port = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reachable(self, seconds: float = 0.0) -> bool:
        """Whether it passes on what comes, and has for so long."""
        return time.monotonic() - self._down_until >= seconds

    def fail(self, seconds: float) -> None:
        """Break every connection, and refuse new ones for a while."""
        self._down_until = time.monotonic() + seconds
        self._loop.call_soon_threadsafe(self._break)

    def _call(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _break(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        self._break()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.reachable():
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, there[1]}
        for source, sink in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._pump(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while part := await source.read(PART):
                sink.write(part)
                await sink.drain()
        except OSError:
            pass  # one side is gone; the other one is closed below
        finally:
            self._open.discard(sink)
            sink.close()
