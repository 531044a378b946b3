"""Concurrency: how many requests are answered at the same time, and how many may wait for their turn."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from openai_api.errors import ApiError, too_many_requests

AT_ONCE = 64
WAITING = 128
# s until a request that waits is sent away. The servers have a patience of their own for what has had its turn.
PATIENCE = 10.0
LONGEST = 60  # s that a caller is told to wait
MEMORY = 0.9  # of what was known of durations before


class RequestQueue:
    """Request queue of one event loop.

    Args:
        at_once: requests that are answered at the same time.
        waiting: requests that may wait, in the order in which they came; more are refused at once.
        patience: seconds until one that waits is refused.
    """

    def __init__(
        self,
        at_once: int = AT_ONCE,
        waiting: int = WAITING,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free = at_once
        self._at_once = at_once
        self._most_waiting = waiting
        self._patience = patience
        self._clock = clock
        self._line: deque[asyncio.Future[None]] = deque()
        self._duration = 1.0  # s, of a request, on average

    @property
    def in_progress(self) -> int:
        return self._at_once - self._free

    @property
    def waiting(self) -> int:
        return len(self._line)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Held while a request is answered.

        Raises:
            ApiError: status 429, too many wait, or this one has waited too long.
        """
        await self._enter()
        began = self._clock()
        try:
            yield
        finally:
            self._duration = MEMORY * self._duration + (1 - MEMORY) * (self._clock() - began)
            self._leave()

    async def _enter(self) -> None:
        if self._free > 0 and not self._line:
            self._free -= 1
            return
        if len(self._line) >= self._most_waiting:
            raise self._refusal()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except BaseException as error:
            if turn in self._line:
                self._line.remove(turn)
            elif not turn.cancelled():  # its turn came just then: it is the next one's
                self._leave()
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise

    def _leave(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _refusal(self) -> ApiError:
        ahead = len(self._line) / self._at_once + 1
        limit = f"it answers {self._at_once} at a time and lets {self._most_waiting} wait"
        return too_many_requests(min(max(math.ceil(ahead * self._duration), 1), LONGEST), limit)
