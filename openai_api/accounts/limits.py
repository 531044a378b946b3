"""Limits: how much a key may do; pure decisions. Times are seconds since the epoch; days are those of UTC."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

MINUTE = 60.0
DAY = 86400.0
MOST_REQUESTS = 6000  # a minute: their times are remembered


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """None: any number. `sessions` are generations at the same time: a request with `n=3` has three."""

    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    sessions: int | None = None


@dataclass(frozen=True, slots=True)
class LimitExceeded:
    """`wait`: whole seconds until it is worth trying again; 0: never, as it was asked."""

    why: str
    wait: int


def refusal(limits: KeyLimits, recent: Sequence[float], tokens: int, now: float) -> LimitExceeded | None:
    """Whether another request may begin; None: it may.

    Args:
        recent: when the requests of at least the last minute began, the oldest first.
        tokens: used today.
    """
    most = limits.requests_per_minute
    if most is not None:
        within = [begun for begun in recent if now - MINUTE < begun <= now]
        if len(within) >= most:
            wait = within[-most] + MINUTE - now if most else MINUTE
            return LimitExceeded(f"it may make {most} requests a minute", max(1, math.ceil(wait)))
    if limits.tokens_per_day is not None and tokens >= limits.tokens_per_day:
        why = f"it may use {limits.tokens_per_day} tokens a day, and has used {tokens}; the day ends at midnight UTC"
        return LimitExceeded(why, max(1, math.ceil(DAY - now % DAY)))
    return None


def crowding(limits: KeyLimits, open_sessions: int, more: int) -> LimitExceeded | None:
    """Whether `more` sessions may begin beside those that are open; None: they may."""
    most = limits.sessions
    if most is None or open_sessions + more <= most:
        return None
    if more > most:
        return LimitExceeded(f"it may have {most} sessions at once, and this request alone needs {more}", 0)
    return LimitExceeded(f"it may have {most} sessions at once, and has {open_sessions}", 1)


def day_of(now: float) -> str:
    """The day, as `2026-11-21`."""
    return time.strftime("%Y-%m-%d", time.gmtime(now))
