"""The base of upstream's connection handlers: a thread with an event loop, in place of a forked process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from patches.concurrency.processes import as_handler
from patches.network.dht import DHT
from patches.network.p2p import P2P, ServicerBase

log = logging.getLogger(__name__)


class _Pipe:
    """Upstream ends a handler by sending it anything through a pipe."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stop = asyncio.Event()

    def send(self, item: object) -> None:
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop has ended by itself
                self.loop.call_soon_threadsafe(self.stop.set)


class ConnectionHandler(threading.Thread, ServicerBase):
    """Connection handler: answers calls of its `rpc_*` methods until it is shut down.

    Attributes:
        ready: done when calls are answered; fails with what prevents it.
    """

    def __init__(self, dht: DHT, module_backends: Mapping[str, Any], *, shutdown_timeout: float = 3.0) -> None:
        super().__init__(name="petals-handler", daemon=True)
        self.dht, self.module_backends = dht, module_backends
        self.shutdown_timeout = shutdown_timeout
        self.ready: Future[None] = Future()
        self._p2p: P2P | None = None
        self._outer_pipe = _Pipe()

    def run_in_background(self, await_ready: bool = True, timeout: float | None = None) -> None:
        self.start()
        if await_ready:
            self.ready.result(timeout)

    def run(self) -> None:
        with as_handler():
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._outer_pipe.loop = asyncio.get_running_loop()
        try:
            self._p2p = await self.dht.replicate_p2p()
            await self.add_p2p_handlers(self._p2p)
        except Exception as error:  # noqa: BLE001 - the waiter for `ready` gets it
            self.ready.set_exception(error)
            return
        self.ready.set_result(None)
        await self._outer_pipe.stop.wait()
        await self.remove_p2p_handlers(self._p2p)

    def terminate(self) -> None:
        """Nothing: a thread cannot be ended from outside. It ends with the program at the latest."""
        log.warning("a connection handler does not end")
