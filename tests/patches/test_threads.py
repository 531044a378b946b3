"""What stands in for processes, their memory and their locks."""

from __future__ import annotations

import asyncio
import errno
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patches.concurrency import locks, processes
from patches.concurrency.futures import ALL_STATES, MPFuture
from patches.concurrency.loops import (
    RemoteExpertWorker,
    aiter_with_timeout,
    amap_in_executor,
    enter_asynchronously,
    iter_as_aiter,
)
from patches.network.records import Blacklist, TimedStorage, get_dht_time

LIMIT = 60.0  # s; only a test that fails waits so long


def test_a_future_that_a_thread_sets_is_awaited_in_a_loop() -> None:
    future: MPFuture[int] = MPFuture()
    other: MPFuture[int] = MPFuture()
    assert future._uid != other._uid
    assert future._state in ALL_STATES

    async def wait() -> int:
        threading.Thread(target=future.set_result, args=(7,)).start()
        return await asyncio.wait_for(future, LIMIT)

    assert asyncio.run(wait()) == 7
    other.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        other.result(LIMIT)


def test_a_lock_is_waited_for_without_stopping_the_loop() -> None:
    lock = threading.Lock()

    async def scenario() -> list[str]:
        seen = []
        lock.acquire()
        entered = asyncio.Event()

        async def enter() -> None:
            async with enter_asynchronously(lock):
                seen.append("entered")
                entered.set()

        task = asyncio.create_task(enter())
        await asyncio.sleep(0)
        seen.append("the loop goes on")
        lock.release()
        await asyncio.wait_for(entered.wait(), LIMIT)
        await task
        return seen

    assert asyncio.run(scenario()) == ["the loop goes on", "entered"]
    assert lock.acquire(blocking=False)


def test_who_gives_up_waiting_for_a_lock_does_not_keep_it() -> None:
    lock = threading.Lock()
    lock.acquire()

    async def scenario() -> None:
        async def enter() -> None:
            async with enter_asynchronously(lock):
                raise AssertionError("it was given up")

        task = asyncio.create_task(enter())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        lock.release()

    asyncio.run(scenario())  # waits for the threads of the loop, too
    assert lock.acquire(timeout=LIMIT)


def test_iterators_keep_their_order_and_end_when_they_take_too_long() -> None:
    async def scenario() -> list[int]:
        doubled = [item async for item in amap_in_executor(lambda x: 2 * x, iter_as_aiter([1, 2, 3]))]

        async def stuck():  # type: ignore[no-untyped-def]
            yield 1
            await asyncio.Event().wait()

        with pytest.raises(TimeoutError):
            async for item in aiter_with_timeout(stuck(), 0.01):
                doubled.append(item)
        return doubled

    assert asyncio.run(scenario()) == [2, 4, 6, 1]


def test_a_worker_runs_coroutines_for_all_threads() -> None:
    async def where() -> int:
        return threading.get_ident()

    idents = {RemoteExpertWorker.run_coroutine(where()), RemoteExpertWorker.run_coroutine(where(), True).result(LIMIT)}
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_a_thread_stands_for_the_runtime_or_for_a_handler() -> None:
    main = processes.getpid()
    with ThreadPoolExecutor(1) as pool, processes.as_handler():
        assert processes.getpid() != main
        assert pool.submit(processes.getpid).result(LIMIT) == main
        with processes.as_handler():
            pass
        assert processes.getpid() != main
    assert processes.getpid() == main


def test_a_process_of_threads_sends_through_its_pipe() -> None:
    receiver, sender = processes.Pipe(duplex=False)
    told = threading.Event()
    receiver.watch(told.set)
    assert not receiver.poll()
    process = processes.Process(target=lambda pipe: pipe.send({"download": 1.0}), args=(sender,))
    process.start()
    assert receiver.poll(LIMIT)
    assert told.wait(LIMIT)
    assert receiver.recv() == {"download": 1.0}
    process.terminate()
    process.join(LIMIT)
    with pytest.raises(ValueError, match="one direction"):
        processes.Pipe()
    value = processes.Value("d", 1.0, lock=False)
    with value.get_lock():
        value.value += 1
    assert value.value == 2.0


@pytest.mark.skipif(sys.platform != "win32", reason="this is how Windows locks files")
def test_a_lock_on_a_file_ends_when_the_file_is_closed(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, (tmp_path / "blocks.lock").open("wb+") as second:
        with (tmp_path / "blocks.lock").open("wb+") as first:
            locks.flock(first.fileno(), locks.LOCK_SH)
            with pytest.raises(OSError, match=r"."):
                locks._take(second.fileno())
            waiting = pool.submit(locks.flock, second.fileno(), locks.LOCK_EX)
            assert not waiting.done()
        waiting.result(LIMIT)


def test_a_file_is_locked_for_one_at_a_time(tmp_path: Path) -> None:
    """With a stand-in for Windows' call, on any system."""
    holders: list[int] = []
    waits: list[float] = []

    def take(descriptor: int) -> None:
        if holders:
            raise OSError(errno.EACCES, "held by another")
        holders.append(descriptor)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            holders.clear()

    locks.flock(1, locks.LOCK_EX, take=take, sleep=sleep)
    locks.flock(2, locks.LOCK_SH, take=take, sleep=sleep)
    assert holders == [2]
    assert len(waits) == 3

    def broken(descriptor: int) -> None:
        raise OSError(errno.EBADF, "no file")

    with pytest.raises(OSError, match="no file"):
        locks.flock(1, locks.LOCK_EX, take=broken)
    with pytest.raises(ValueError, match="operation 8"):
        locks.flock(1, 8)


def test_peers_that_fail_are_stayed_away_from_ever_longer() -> None:
    now = [0.0]
    bans = Blacklist(10.0, 2.0, clock=lambda: now[0])
    assert "peer" not in bans
    for wait in (10.0, 20.0, 40.0):
        bans.register_failure("peer")
        now[0] += wait - 1
        assert "peer" in bans
        now[0] += 1
        assert "peer" not in bans
    bans.register_success("peer")
    bans.register_failure("peer")
    now[0] += 10
    assert "peer" not in bans


def test_values_that_have_expired_are_dropped() -> None:
    storage = TimedStorage()
    storage.store("old", 1, get_dht_time() - 1)
    storage.store("new", 2, get_dht_time() + 1000)
    with storage.freeze():
        assert {key: value for key, (value, _) in storage.items()} == {"new": 2}
    assert storage.get("old") is None
    assert storage.get("new").value == 2  # type: ignore[union-attr]
