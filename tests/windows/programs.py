"""The programs of the swarm as processes, started the same way on every platform."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0  # s; only a test that fails waits so long
AFTERMATH = 20.0  # s to read what an ended process has left in its pipes; something else may hold them open


class Program:
    """`python -m MODULE ARGUMENTS` (or what `flags` say in place of -m), which ends when its standard input does.

    Attributes:
        output, errors: the lines that it has printed so far.
    """

    def __init__(
        self,
        *arguments: str,
        python: Sequence[str] = (sys.executable,),
        flags: Sequence[str] = ("-m",),
        **environment: str,
    ) -> None:
        self.process = subprocess.Popen(
            [*python, *flags, *arguments],
            cwd=ROOT,
            env={**os.environ, "SWARM_PARENT": "stdin", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        self.output: list[str] = []
        self.errors: list[str] = []
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.output), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterable[str], lines: list[str]) -> None:
        for line in stream:
            with self._changed:
                lines.append(line.rstrip("\r\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def line(self, start: str) -> str:
        """What follows `start` in the first line of output that begins with it. Fails when the process ends first."""

        def found() -> list[str]:
            return [line.removeprefix(start).strip() for line in self.output if line.startswith(start)]

        with self._changed:
            self._changed.wait_for(lambda: found() or not self._readers[0].is_alive(), PATIENCE)
        assert found(), f"no line {start!r}: {self.output} {self.errors}"
        return found()[0]

    def finish(self) -> int:
        """Wait for the end without asking for it; the exit code."""
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(AFTERMATH)
        return code

    def close_input(self) -> int:
        """What the death of the parent looks like to it; the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(AFTERMATH)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
