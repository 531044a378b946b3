"""Processes: what upstream takes from `multiprocessing`, within one process; values, queues, pipes and "processes" of
threads.

Upstream forks its connection handlers, so that they share what the runtime's process has made. Windows cannot fork.
Here handlers are threads, and nothing needs to be shared by the operating system or pickled.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Queue as Queue
from queue import SimpleQueue as SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
Event = threading.Event
Lock = threading.Lock


class Value:
    """A number that threads share. `typecode` and `lock` are what `multiprocessing.Value` takes, and of no use here."""

    def __init__(self, typecode: Any, value: Any = 0, *, lock: bool = True) -> None:
        self.value = value
        self._lock = threading.RLock()

    def get_lock(self) -> threading.RLock:
        return self._lock


class Connection:
    """Both ends of a one-way pipe."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    def watch(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each `send`: what waits for many pipes has no file descriptors to select on."""
        self._listeners.append(listener)

    def send(self, item: Any) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify()
        for listener in self._listeners:
            listener()

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Whether there is something, waiting at most `timeout` seconds for it; None: for ever."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items), timeout)

    def recv(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items))
            return self._items.popleft()


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:
    """The receiving and the sending end. Raises: ValueError: upstream has no duplex pipes, and neither has this."""
    if duplex:
        raise ValueError("only pipes of one direction are provided: Pipe(duplex=False)")
    connection = Connection()
    return connection, connection


class Process(threading.Thread):
    """A thread in a process's place."""

    def __init__(self, target: Callable[..., object], args: tuple[Any, ...] = ()) -> None:
        super().__init__(target=target, args=args, daemon=True)

    def terminate(self) -> None:
        """Leave it alone: a thread cannot be ended from outside. It ends with the program at the latest."""


_MAIN, _HANDLER = 0, 1
_roles = threading.local()


def getpid() -> int:
    """In place of `os.getpid`: which of upstream's processes the thread stands for."""
    return getattr(_roles, "role", _MAIN)


@contextmanager
def as_handler() -> Iterator[None]:
    """The thread stands for a connection handler's process, not for the one where caches are made and used."""
    before, _roles.role = getpid(), _HANDLER
    try:
        yield
    finally:
        _roles.role = before


def increase_file_limit(new_soft: int, new_hard: int) -> None:
    """Leave the limit of open files alone: Windows has none, and ZeroMQ needs few."""


def as_it_is(arg: Any, device: torch.device | str, share_memory: bool = False) -> Any:
    """A tensor on the device; anything else unchanged. Nothing is put in shared memory, which no process would read."""
    return arg.detach().to(device).requires_grad_(arg.requires_grad) if hasattr(arg, "detach") else arg
