"""Server: serves the gateway over HTTP until the program is told to stop."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from routing.links import FORBIDDEN, forbidden
from swarm.errors import SwarmError

IDLE = 75  # s; longer than clients keep a connection, or their next request may meet its end
FAREWELL = 3  # s for answers to end once the gateway stops
BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`; port 0 takes any free one.

    Raises:
        SwarmError: the port is in use or forbidden, or the host is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        # With the protocol, because asyncio turns Nagle's algorithm off only where it is told that this is TCP: events
        # of a stream, and a body after its headers, would wait up to 40 ms for the other side.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if sys.platform == "win32":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise SwarmError(_explained(error, host, port)) from error
    return listener


def _explained(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what uses it, or choose another one with --port"
    if error.errno in FORBIDDEN:
        return f"port {port} on {host} {forbidden()}"
    return f"cannot listen on {host}: {error.strerror}. Give an address of this machine with --host."


def url_of(host: str, listener: socket.socket) -> str:
    """Where a browser on this machine finds the gateway: an address that means every interface is none to go to."""
    port = listener.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


class HttpServer(uvicorn.Server):
    """HTTP server of the gateway.

    Args:
        over: tells whether the server should end.
        closing: set in the server's event loop then, so that open answers end.
        on_ready: called when requests are taken.
    """

    def __init__(
        self, app: ASGIApp, over: Callable[[], bool], closing: asyncio.Event, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE,
                timeout_graceful_shutdown=FAREWELL,
            )
        )
        self._over = over
        self._closing = closing
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        if self._over():
            self._closing.set()
            self.should_exit = True
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals set `stop`; uvicorn's own handlers would end the program by the signal, not with status 0."""
        yield
