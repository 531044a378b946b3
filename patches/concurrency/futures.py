"""The result of a task of upstream's pools: a future that threads set and coroutines await.

Upstream's own lives in memory shared between forked processes. Here all are threads of one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Generator
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import Any, TypeVar

T = TypeVar("T")

ALL_STATES = (PENDING, RUNNING, CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)
_numbers = itertools.count()


class MPFuture(Future[T]):
    """Awaitable in any event loop. `_uid` is what upstream's pools know a task by."""

    def __init__(self) -> None:
        super().__init__()
        self._uid = next(_numbers)

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()
