"""Work for a client that may go away, on a gateway that may shut down: neither leaves anything running."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openai_api.errors import ApiError, from_exception, shutting_down
from openai_api.generation.generation import sse

log = logging.getLogger(__name__)
T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


async def run_until_disconnect(work: Awaitable[T], receive: Receive, closing: asyncio.Event) -> T:
    """Do the work while the client waits for it; the work is cancelled, and has ended, when this raises.

    Args:
        receive: of the request, whose body must have been read.
        closing: set when the gateway shuts down.

    Raises:
        ClientGone: the client went away.
        ApiError: the gateway shuts down.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    ending = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait((doing, leaving, ending), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone if leaving.done() else shutting_down()
    finally:
        for task in (doing, leaving, ending):
            task.cancel()
        await asyncio.gather(doing, leaving, ending, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


class EventStream(Response):
    """Event stream: sends events until they end. An error after the first event becomes the last one, and no `[DONE]`
    follows.

    Args:
        failure: the event that tells of an error.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes, None],
        closing: asyncio.Event,
        request_id: str,
        failure: Callable[[ApiError], bytes] = lambda problem: sse(problem.body()),
    ) -> None:
        # `X-Accel-Buffering` keeps nginx from collecting the events.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._rest = rest
        self._closing = closing
        self._request_id = request_id
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _send(send, self._first)
            try:
                await run_until_disconnect(self._pass_on(send), receive, self._closing)
            except ClientGone:
                log.info("%s: the client is gone", self._request_id)
                return
            except Exception as error:  # the status is out, so it is said in the stream
                problem = from_exception(error, self._request_id)
                if problem.status == 500:
                    log.exception("%s failed", self._request_id)
                await _send(send, self._failure(problem))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._rest.aclose()

    async def _pass_on(self, send: Send) -> None:
        async for event in self._rest:
            await _send(send, event)


async def _send(send: Send, event: bytes) -> None:
    await send({"type": "http.response.body", "body": event, "more_body": True})
