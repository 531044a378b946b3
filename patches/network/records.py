"""Values that are good for a while, and peers to stay away from for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

MAX_DHT_TIME_DISCREPANCY_SECONDS = 3  # s
DHTExpiration = float


def get_dht_time() -> float:
    """Seconds since the epoch. Leases are kept by the directory's clock, so no time need be agreed on."""
    return time.time()


class DHTValue(NamedTuple):
    """A value and when it expires, in seconds since the epoch."""

    value: Any
    expiration_time: float


class TimedStorage(dict[Any, DHTValue]):
    """Values by key; those that have expired are dropped when it is frozen to be read."""

    def store(self, key: Any, value: Any, expiration_time: float) -> None:
        self[key] = DHTValue(value, expiration_time)

    @contextmanager
    def freeze(self) -> Iterator[TimedStorage]:
        """The caller holds the lock that guards it, if it is shared."""
        now = get_dht_time()
        for key in [key for key, (_, expires) in self.items() if expires < now]:
            del self[key]
        yield self


class Blacklist:
    """Peers that have failed: the n-th failure in a row keeps one away for `base_time * backoff_rate ** (n - 1)` s."""

    def __init__(
        self, base_time: float, backoff_rate: float = 2.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._base_time = base_time
        self._backoff_rate = backoff_rate
        self._clock = clock
        self._failures: dict[Any, int] = {}
        self._until: dict[Any, float] = {}

    def register_failure(self, peer: Any) -> None:
        failures = self._failures[peer] = self._failures.get(peer, 0) + 1
        self._until[peer] = self._clock() + self._base_time * self._backoff_rate ** (failures - 1)

    def register_success(self, peer: Any) -> None:
        self._failures.pop(peer, None)
        self._until.pop(peer, None)

    def __contains__(self, peer: Any) -> bool:
        return self._until.get(peer, 0.0) > self._clock()
