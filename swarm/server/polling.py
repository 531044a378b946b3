"""Polling: how a server waits for the next message; awake while one is likely to come soon, asleep otherwise.

A processor that slept for only a few milliseconds computes what comes next a quarter to a third slower: its clock is
down, its caches are cold, and on a virtual machine it may have been given to others. In a ring every hop waits like
that once per token. So a server whose last wait was short stays awake through the next one, unless another process
wants the processor meanwhile.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import zmq

AWAKE = 0.025  # s; a ring that takes longer gains next to nothing by it
CROWDED = 0.004  # s between two looks: another thread has computed on this processor
REST = 1.0  # s of sleeping through every wait after that
GIVE_WAY: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))  # the latter on Windows


class AdaptivePoller:
    """Adaptive poller of a server's sockets.

    Args:
        poller: of the sockets to wait for.
        awake: seconds to stay awake at most; 0 saves power.
        give_way: lets others run who want to.
    """

    def __init__(
        self,
        poller: zmq.Poller,
        awake: float = AWAKE,
        clock: Callable[[], float] = time.monotonic,
        give_way: Callable[[], None] = GIVE_WAY,
    ) -> None:
        self._poller = poller
        self._awake = awake
        self._clock = clock
        self._give_way = give_way
        self._soon = False  # the last wait was short
        self._rests_until = clock()

    def wait(self, timeout: float) -> bool:
        """Wait for a message, at most `timeout` seconds. Whether one is there."""
        started = self._clock()
        there = bool(self._poller.poll(0)) or self._watch(started, min(timeout, self._awake))
        if not there and timeout > 0:
            there = bool(self._poller.poll(int(1000 * timeout)))
        self._soon = there and self._clock() - started < self._awake
        return there

    def _watch(self, started: float, seconds: float) -> bool:
        before = started
        while self._soon and self._rests_until <= before < started + seconds:
            self._give_way()
            if self._poller.poll(0):
                return True
            now = self._clock()
            if now - before > CROWDED:
                self._rests_until = now + REST
            before = now
        return False
