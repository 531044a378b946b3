"""The thread that computes: it takes tasks from upstream's pools, the most urgent first."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

log = logging.getLogger(__name__)


class Runtime(threading.Thread):
    """In place of hivemind's, which selects over file descriptors of pipes, as Windows cannot.

    Args:
        prefetch_batches, sender_threads, stats_report_interval: upstream's options; tasks are computed one after the
            other and their results are set at once.
        device: where the pools' inputs go; None: where each pool says.
    """

    def __init__(
        self,
        module_backends: Mapping[str, Any],
        prefetch_batches: int = 1,
        sender_threads: int = 1,
        device: torch.device | None = None,
        stats_report_interval: float | None = None,
    ) -> None:
        super().__init__(name="petals-runtime", daemon=True)
        self.module_backends = module_backends
        self.pools: tuple[Any, ...] = tuple(chain.from_iterable(b.get_pools() for b in module_backends.values()))
        self.device = device
        self.ready = threading.Event()
        self._wake = threading.Event()
        self._stopping = False

    def run(self) -> None:
        for pool in self.pools:
            pool.batch_receiver.watch(self._wake.set)
            if not pool.is_alive():
                pool.start()
        self._wake.set()  # for what was submitted before
        self.ready.set()
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            while not self._stopping and (waiting := [pool for pool in self.pools if not pool.empty]):
                self._compute(min(waiting, key=lambda pool: pool.priority))

    def _compute(self, pool: Any) -> None:
        task, inputs = pool.load_batch_to_runtime(None, self.device)
        try:
            outputs = pool.process_func(*inputs)
        except Exception as error:  # noqa: BLE001 - the submitter of the task gets it
            log.warning("a task of %s failed: %s", pool.name, error)
            pool.send_exception_from_runtime(task, error)
        else:
            pool.send_outputs_from_runtime(task, outputs)

    def shutdown(self) -> None:
        """End after the task that is being computed."""
        self.ready.clear()
        for pool in self.pools:
            if pool.is_alive():
                pool.terminate()
        self._stopping = True
        self._wake.set()
