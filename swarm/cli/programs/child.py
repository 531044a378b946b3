"""Child program: a program of the swarm that another one starts, watches and ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import deque

from swarm.errors import SwarmError
from swarm.system.jobs import JobObject
from swarm.system.process import PARENT, StopSignal

READY_TIMEOUT = 600.0  # s; a large model takes its time to load
STOP_TIMEOUT = 10.0  # s for a process to end by itself


class ChildProgram:
    """Child program: one of the swarm's programs in a process of its own, which ends when this process does.

    Attributes:
        name: for people; each line that it logs begins with it.
        process: the one that runs now.
        line: its first line of the contract, `join: ...` or `ready: ...`; empty until it came.
        restarts: how many times it was started again.
    """

    def __init__(self, name: str, module: str, *arguments: str, job: JobObject, join: str = "") -> None:
        self.name = name
        self._command = [sys.executable, "-m", module, *arguments]
        # The token goes by the environment: command lines are visible to every user of the machine.
        self._environment = {**os.environ, PARENT: "stdin", "PYTHONUNBUFFERED": "1", "SWARM_JOIN": join}
        self._job = job
        self.restarts = 0
        self.start()

    def start(self) -> None:
        """Start it, anew where it has run before."""
        self._first = threading.Event()
        self.line = ""
        self._last: deque[str] = deque(maxlen=3)
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            text=True,
            encoding="utf-8",
            errors="replace",
            # Ctrl-C in the terminal reaches this process, which then ends its children in order.
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._job.add(self.process.pid)
        threading.Thread(target=self._read_output, args=(self.process,), daemon=True).start()
        threading.Thread(target=self._read_errors, args=(self.process,), daemon=True).start()

    def _read_output(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if not self.line and re.match(r"(join|ready):", line):
                self.line = line.strip()
                self._first.set()
        self._first.set()

    def _read_errors(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self._last.append(line.strip())
            print(f"[{self.name}] {line}", end="", file=sys.stderr, flush=True)

    def wait_ready(self, stop: StopSignal) -> str:
        """Its first line of the contract, as soon as it comes.

        Raises:
            SwarmError: it ended without one, or took longer than `READY_TIMEOUT`.
            KeyboardInterrupt: `stop` was set meanwhile.
        """
        limit = time.monotonic() + READY_TIMEOUT
        while not self._first.wait(0.2):
            if stop.is_set():
                raise KeyboardInterrupt
            if time.monotonic() > limit:
                raise SwarmError(
                    f"{self.name} was not ready within the limit of {READY_TIMEOUT:.0f} s: see its lines above, then "
                    "start again, with a smaller model where this machine is slow"
                )
        if not self.line:
            self.process.wait()
            raise SwarmError(f"{self.name} did not start: {self._last[-1] if self._last else 'it said nothing'}")
        return self.line

    def ask_to_stop(self) -> None:
        """Close its standard input, upon which it ends in order."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()

    def stop(self) -> None:
        """End it, by force where it takes longer than `STOP_TIMEOUT`."""
        self.ask_to_stop()
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
