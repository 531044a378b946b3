"""Limits: how often a peer may ask; a token bucket for each key (https://en.wikipedia.org/wiki/Token_bucket). No
sockets.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_KEYS = 20_000


class RateLimit:
    """Rate limit: lets each key spend `rate` per second in the long run, and up to `burst` at once. Belongs to one
    thread.

    Args:
        rate: what a key gains per second, above 0.
        burst: what a key can save up, and has at first.
        clock: seconds of a clock that does not jump.
        max_keys: of these many keys the spending is remembered; over that the one that was quiet longest is forgotten,
            and has its whole burst again.

    Raises:
        ValueError: rate or burst is not above 0, or max_keys is below 1.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = MAX_KEYS,
    ) -> None:
        if not (rate > 0 and burst > 0 and max_keys >= 1):
            raise ValueError(f"no rate limit of {rate} per second, {burst} at once, for {max_keys} keys")
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when; quietest first

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, key: str, cost: float = 1.0) -> float:
        """Take `cost` from what `key` has. 0: taken; otherwise nothing was taken, and these seconds are to be waited.

        A cost over `burst` counts as `burst`, so that what is rare and expensive is possible at all. Being refused
        costs nothing: who asks too often is not locked out for ever.
        """
        now = self._clock()
        cost = min(cost, self._burst)
        left, then = self._buckets.get(key, (self._burst, now))
        left = min(left + max(now - then, 0.0) * self._rate, self._burst)
        if cost > left:
            return (cost - left) / self._rate
        self._buckets[key] = left - cost, now
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return 0.0

    def forget(self, key: str) -> None:
        """The peer has left for good."""
        self._buckets.pop(key, None)
