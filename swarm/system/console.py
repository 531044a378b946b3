"""Standard streams and the console's window, which differ most between platforms.

Standard library only: bootstrap.py loads this file before anything is installed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE = 4.5  # s that a program has after its window was closed; Windows ends it after 5
CLOSE_EVENTS = {2, 5, 6}  # CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT


def make_streams_lenient() -> None:
    """Let nothing fail for a character that a stream does not know, and make what is piped UTF-8 on every platform.

    On Windows a pipe or a file otherwise takes the code page of the user's country. `PYTHONIOENCODING` still decides.
    A service may have no streams.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is None:
            continue
        chosen = None if stream.isatty() or "PYTHONIOENCODING" in os.environ else "utf-8"
        stream.reconfigure(encoding=chosen, errors="replace")  # type: ignore[union-attr]


class CloseHandler:
    """Close handler: Windows calls it, in a thread of its own, when the console's window is closed or the user logs
    off.

    The process is ended as soon as the call returns, so it returns when the program has ended in order.
    """

    def __init__(self, ask_to_stop: Callable[[], None], grace: float = GRACE) -> None:
        self._ask_to_stop = ask_to_stop
        self._grace = grace
        self.ended = threading.Event()

    def __call__(self, event: int) -> bool:
        """Whether the event was dealt with; others, Ctrl-C among them, go to Python's own handler."""
        if event not in CLOSE_EVENTS:
            return False
        self._ask_to_stop()
        self.ended.wait(self._grace)
        return True


@contextmanager
def stop_on_close(ask_to_stop: Callable[[], None]) -> Iterator[None]:
    """Call `ask_to_stop` when the window is closed while the block runs, and let the block come to its end."""
    if sys.platform == "win32":
        import ctypes
        from ctypes import wintypes

        closing = CloseHandler(ask_to_stop)
        handler = ctypes.WINFUNCTYPE(wintypes.BOOL, wintypes.DWORD)(closing)
        kernel = ctypes.windll.kernel32
        kernel.SetConsoleCtrlHandler(handler, True)
        try:
            yield
        finally:
            closing.ended.set()
            kernel.SetConsoleCtrlHandler(handler, False)
    else:
        yield
