"""Thread that polls sockets: how other threads give it work, and wake it."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import zmq

from routing.links import Context, Socket

Command = Callable[[], None]
_numbers = itertools.count()


class CommandQueue:
    """Command queue of a thread that polls: any thread puts commands into it, and a pair of sockets wakes the thread.

    A poller of ZeroMQ watches sockets only, and a socket may be used by one thread at a time: hence the pair, whose one
    end is watched and whose other end is used under a lock.
    """

    def __init__(self, context: Context, poller: zmq.Poller) -> None:
        address = f"inproc://wake-{next(_numbers)}"
        self._commands: deque[Command] = deque()
        self._lock = threading.Lock()
        self._is_closed = False
        self._waker: Socket = context.socket(zmq.PAIR)
        self._waker.bind(address)
        self._woken: Socket = context.socket(zmq.PAIR)
        self._woken.connect(address)
        poller.register(self._woken, zmq.POLLIN)

    def __bool__(self) -> bool:
        return bool(self._commands)

    def put(self, command: Command, last: bool = False) -> bool:
        """Have the thread run the command; False: the queue takes no more.

        Args:
            last: take no other command after this one.
        """
        with self._lock:
            if self._is_closed:
                return False
            self._is_closed = last
            self._commands.append(command)
            with suppress(zmq.Again):  # so many wakes wait already that the thread is about to look
                self._waker.send(b"", zmq.NOBLOCK)
            return True

    def run(self) -> None:
        """Run what waits: for the thread that polls."""
        while self._woken.poll(0):
            self._woken.recv()
        while self._commands:
            self._commands.popleft()()

    def close(self) -> None:
        """Take no more commands, and close the sockets."""
        with self._lock:
            self._is_closed = True
            self._woken.close(0)
            self._waker.close(0)
