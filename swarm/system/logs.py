"""Filters of the log, parts of which peers decide: no control characters, and never too much."""

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
    """Rate limit of the log: lets through so many records of one kind, so that no peer can fill a disk.

    A kind is a logger and a text before its arguments are put in. The first record that comes through again says how
    many did not.
    """

    def __init__(self, burst: float = BURST, rate: float = RATE, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._limit = RateLimit(rate, burst, clock, max_keys=MAX_KINDS)
        self._left_out: Counter[str] = Counter()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record may be logged; it may be changed to say what was left out before it."""
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
    """Formatter that escapes what would move the cursor or begin a new line, because peers write parts of the log."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record, escaped."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        """The lines of a traceback, escaped."""
        return "\n".join(map(printable, super().formatException(ei).split("\n")))  # type: ignore[arg-type]


def printable(text: str) -> str:
    """The text, with everything that does not print escaped as in Python's strings."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
