"""A limit to the size of a request's body."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LIMIT = 8 << 20  # bytes; a prompt of a million tokens is about half of it
PATIENCE = 8  # how many times the limit is read and thrown away, so that the client gets to read the answer


class BodyLimitMiddleware:
    """Raises status 413 where the body is read, once it is longer than `limit` bytes."""

    def __init__(self, app: ASGIApp, limit: int = LIMIT) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def receive_limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size <= self._limit:
                return message
            while message.get("more_body") and size <= PATIENCE * self._limit:
                message = await receive()
                size += len(message.get("body", b""))
            raise HTTPException(413, f"The body is too large: at most {self._limit} bytes are taken.")

        await self._app(scope, receive_limited, send)
