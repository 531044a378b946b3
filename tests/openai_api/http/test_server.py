"""The gateway's own socket."""

from __future__ import annotations

import asyncio
import socket

from openai_api.http.server import listen


def test_what_the_gateway_writes_is_sent_at_once() -> None:
    """Not held back until the client has acknowledged what came before, which it may put off by 40 ms."""

    async def run() -> int:
        delayed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            delayed.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(connected, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                writer.close()
                return await delayed

    assert asyncio.run(run())
