"""Usage writer: writes usage down; a little later and many at a time, so that no answer waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from openai_api.accounts.database import AccountsError
from openai_api.accounts.usage import Tally

log = logging.getLogger(__name__)

PAUSE = 2.0  # s between two writings
LONGEST = 60.0  # s between two attempts while the database fails


class UsageWriter:
    """Usage writer of one event loop.

    What cannot be written (the disk is full, the database is locked or away) is kept in memory, added up by day, and
    written when it can be. It takes a few rows however long that is.

    Args:
        write: writes a tally in one transaction.
    """

    def __init__(self, write: Callable[[Tally], Awaitable[None]]) -> None:
        self._write = write
        self._busy = asyncio.Lock()
        self._failures = 0
        self.waiting = Tally()
        self._under_way = Tally()

    def tokens(self, day: str, key: str) -> int:
        """Of a key, that are not yet written."""
        return self.waiting.tokens(day, key) + self._under_way.tokens(day, key)

    async def flush(self) -> bool:
        """Write what waits; whether that went well. A failure is told once."""
        # To the end, also for a caller who leaves: no caller can call a thread back that may have written already.
        return await asyncio.shield(self._flush())

    async def _flush(self) -> bool:
        async with self._busy:
            if not self.waiting:
                return True
            self._under_way, self.waiting = self.waiting, Tally()
            try:
                await self._write(self._under_way)
            except BaseException as error:
                self._under_way.merge(self.waiting)
                self.waiting = self._under_way
                if not isinstance(error, AccountsError):
                    raise
                if not self._failures:
                    log.error("usage cannot be written down (%s); it is kept and tried again", error)
                self._failures += 1
                return False
            finally:
                self._under_way = Tally()
            if self._failures:
                log.info("usage is written down again")
                self._failures = 0
            return True

    async def run(self) -> None:
        """Write from time to time, for ever."""
        while True:
            await asyncio.sleep(min(PAUSE * 2 ** min(self._failures, 10), LONGEST))
            try:
                await self.flush()
            except Exception:
                log.exception("usage cannot be written down")
