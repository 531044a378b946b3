"""The queue by which other threads give work to one that polls sockets."""

from __future__ import annotations

import threading

import zmq

from routing.links import Context
from routing.thread import CommandQueue


def test_commands_wake_the_thread_run_in_order_and_end_with_the_last() -> None:
    context: Context = zmq.Context()
    poller = zmq.Poller()
    queue = CommandQueue(context, poller)
    done: list[int] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            poller.poll()  # for ever: only a command wakes it
            queue.run()
        queue.close()

    thread = threading.Thread(target=run)
    thread.start()
    # More than the sockets hold: a wake that finds no room is not needed.
    assert all(queue.put(lambda number=number: done.append(number)) for number in range(5000))  # type: ignore[misc]
    assert queue.put(stop.set, last=True)
    assert not queue.put(lambda: done.append(-1)), "nothing comes after the last"
    thread.join(60)
    assert done == list(range(5000))
    assert not queue.put(lambda: done.append(-1))
    context.term()  # both ends are closed, or this would wait for ever
