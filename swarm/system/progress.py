"""Progress of a long job, for the person who waits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars

from swarm.system.home import size

_STEP = 10  # percent between two lines


class Progress(Protocol):
    """Progress callback: called with bytes done so far and in all; `total` is 0 where that is unknown."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """Bars on a terminal; elsewhere a plain line for every ten percent. `stream` is standard error by default."""
    stream = stream or sys.stderr
    if stream is None or not stream.isatty():
        yield _Lines(stream)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(file=stream), transient=True) as bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        task = self._tasks.get(what)
        if task is None:
            task = self._tasks[what] = self._bars.add_task(what)
        self._bars.update(task, completed=done, total=total or None)


class _Lines:
    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._said: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if not total or self._stream is None:
            return
        percent = min(100, done * 100 // total // _STEP * _STEP)
        if percent > self._said.get(what, 0):
            self._said[what] = percent
            print(f"{what}: {percent} % of {size(total)}", file=self._stream, flush=True)
