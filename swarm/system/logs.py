"""What a program writes to its log, when others decide what is in it: no control characters, and never too much."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from routing.limits import RateLimit

BURST = 100  # lines of one kind that may come at once
RATE = 0.2  # of them per second from then on: some 3 MB a day
MAX_KINDS = 1000


class RateLimitedFilter(logging.Filter):
    """Lets through only so many records of one kind, so that nobody can fill a disk by what is logged about him.

    A kind is a logger and a text before its arguments are put in. The first record that comes through again says how
    many did not.
    """

    def __init__(self, burst: float = BURST, rate: float = RATE, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._limit = RateLimit(rate, burst, clock, max_keys=MAX_KINDS)
        self._left_out: Counter[str] = Counter()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        kind = f"{record.name} {record.msg}"
        with self._lock:
            if self._limit.spend(kind):
                if kind in self._left_out or len(self._left_out) < MAX_KINDS:
                    self._left_out[kind] += 1
                return False
            left_out = self._left_out.pop(kind, 0)
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more like this were left out)", ()
        return True


class PrintableFormatter(logging.Formatter):
    """Peers write parts of what is logged: what would move the cursor or begin a new line is escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))  # type: ignore[arg-type]


def printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
