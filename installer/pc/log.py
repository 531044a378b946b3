"""Log of the setup: a line for people, and the same with the time in the log file."""

from __future__ import annotations

import sys
import time
from pathlib import Path


class Log:
    """The setup's log: the console, and a file with times.

    Args:
        path: appended to; None: no file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        passed = time.monotonic() - self._started
        shown = f"[{passed:4.0f} s] {line}"
        stream = sys.stdout
        if stream is not None:  # pythonw has none
            encoding = stream.encoding or "ascii"
            print(shown.encode(encoding, "replace").decode(encoding), flush=True)
        self.keep(shown)

    def keep(self, line: str) -> None:
        """Only in the file."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(line + "\n")
