"""A dialer's way through a router: a port on loopback, and behind it the router's connection to the peer.

libzmq can speak SOCKS, which would do without the port, but a proxy that answers nonsense, or whose name is unknown,
aborts the process, and one that says nothing is waited for without end (libzmq 4.3.5).
"""

from __future__ import annotations

import asyncio
import socket

from routing.relay.rules import JOINED, Preamble, RelayLimits, Way
from routing.relay.splice import Background, SplicedStream, close, connect, serve, splice

PATIENCE = RelayLimits().patience + 1.0  # s until the router must have joined us to the peer


class Tunnel:
    """Tunnel of a dialer: a port on loopback that leads through a router.

    Attributes:
        port: on 127.0.0.1; a connection there speaks to the peer, or is cut off where the router cannot be reached.
        joined: whether the last connection got to the other side of the router. What answers there may not be the peer:
            only CURVE tells.

    Raises:
        OSError: no port can be had.
    """

    def __init__(self, background: Background, way: Way) -> None:
        self.joined = False
        self._way = way
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(listening.getsockname()[1])
        self._serving = background.start(serve(listening, self._pass_on))

    async def _pass_on(self, here: SplicedStream) -> None:
        self.joined = False
        there = await connect(self._way.host, self._way.port, PATIENCE)
        try:
            there.writer.write(bytes(Preamble("dial", self._way.name)))
            async with asyncio.timeout(PATIENCE):
                self.joined = await there.reader.read(1) == JOINED
            if self.joined:
                await splice(here, there)
        finally:
            await close(there)

    def close(self) -> None:
        """Take no more connections. The one that is there ends with either of its ends."""
        self._serving.cancel()


class Tunnels:
    """The tunnels of one dialer, and the thread that they share once there is one."""

    def __init__(self) -> None:
        self._background: Background | None = None

    def open(self, way: Way) -> Tunnel:
        """Raises: OSError: no port can be had."""
        if self._background is None:
            self._background = Background("tunnels")
        return Tunnel(self._background, way)

    def close(self) -> None:
        if self._background is not None:
            self._background.close()
            self._background = None
