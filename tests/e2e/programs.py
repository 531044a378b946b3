"""The programs as real processes, with what they print, for tests.

A server takes seconds to import its libraries, so processes are forked (where there is a fork) from one that has
imported them and has done nothing else. What they run is the command line that the contract names.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

# Several servers share few cores here, and the threads of each would wait for one another at every step.
_ALIKE = ("--device", "cpu", "--threads", "1")
BACKEND: tuple[str, ...] = ()  # options of every server; tests/e2e/test_llamacpp.py has them
LIMIT = 120.0  # s for what takes a few; only a broken program gets there
_PRELOAD = [
    "torch",
    "transformers",
    "backends.huggingface.loading",
    "swarm.cli.main",
    "swarm.server.program",
    "openai_api.cli",
]

# For the process that the others are forked from, which imports torch before `swarm.server.program` can say so.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
_context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
if os.name == "posix":
    _context.set_forkserver_preload(_PRELOAD)


class _Out:
    """Standard output or error of a program: goes to the test, line by line."""

    def __init__(self, pipe: Connection, name: str) -> None:
        self._pipe, self._name, self._rest = pipe, name, ""
        self.encoding = "utf-8"

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._pipe.send((self._name, line))
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def reconfigure(self, **options: str) -> None:
        pass


def _program(command: str, arguments: Sequence[str], environment: dict[str, str], pipe: Connection) -> None:
    os.environ.update(environment)
    sys.argv = [command, *arguments]
    sys.stdout, sys.stderr = _Out(pipe, "out"), _Out(pipe, "err")  # type: ignore[assignment]
    from openai_api.cli import main as gateway
    from swarm.cli.main import client_main, directory_main, main, router_main, server_main

    {
        "swarm": main,
        "swarm-directory": directory_main,
        "swarm-router": router_main,
        "swarm-server": server_main,
        "swarm-client": client_main,
        "swarm-gateway": gateway,
    }[command]()


class Program:
    """One program. `lines` holds what it printed, as (`out` or `err`, text)."""

    def __init__(self, command: str, *arguments: str, **environment: str) -> None:
        self._pipe, theirs = _context.Pipe()
        self.lines: list[tuple[str, str]] = []
        self.process = _context.Process(target=_program, args=(command, arguments, environment, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def wait_line(self, pattern: str, stream: str = "out") -> str:
        """The first line that matches; AssertionError if the program ends without one."""
        seen = 0
        limit = time.monotonic() + LIMIT
        while True:
            for name, line in self.lines[seen:]:
                seen += 1
                if name == stream and re.match(pattern, line):
                    return line
            assert self._read(limit - time.monotonic()), f"no line {pattern!r} in {self.lines}"

    def wait_exit(self) -> int:
        """Its exit code, once it has ended by itself."""
        limit = time.monotonic() + LIMIT
        while self._read(limit - time.monotonic()):
            pass
        self.process.join(LIMIT)
        assert self.process.exitcode is not None, f"still running; {self.lines}"
        return self.process.exitcode

    @property
    def errors(self) -> str:
        return "\n".join(line for name, line in self.lines if name == "err")

    def _read(self, patience: float) -> bool:
        try:
            if not self._pipe.poll(max(patience, 0)):
                return False
            self.lines.append(self._pipe.recv())
        except (EOFError, OSError):
            return False
        return True

    def drain(self) -> None:
        """Read what it has said since; a program that nobody listens to stands still when its pipe is full."""
        while self._read(0):
            pass

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Swarm:
    """A directory, and servers and gateways as they are added.

    with Swarm(home) as swarm:
        swarm.server.program(model, "0:3", "3:6")
    """

    def __init__(self, home: Path, *arguments: str) -> None:
        self.environment = {"SWARM_HOME": str(home)}
        self._programs = ExitStack()
        self.directory = self.start("swarm-directory", "--bind", "127.0.0.1:0", *arguments)
        self.token = self.directory.wait_line("join:").removeprefix("join:").strip()
        self.environment["SWARM_JOIN"] = self.token
        self.servers: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._programs.close()

    def start(self, command: str, *arguments: str) -> Program:
        program = Program(command, *arguments, **self.environment)
        self._programs.callback(program.kill)
        return program

    def serve(self, model: Path | str, *spans: str, options: Sequence[str] = ()) -> list[Program]:
        """Start a server for each span and wait until all are ready."""
        started = [
            self.start("swarm-server", str(model), *(("--blocks", span) if span else ()), *_ALIKE, *BACKEND, *options)
            for span in spans
        ]
        for server in started:
            server.wait_line("ready:")
        self.servers += started
        return started

    def gateway(self) -> str:
        """Start a gateway; its URL."""
        return self.start("swarm-gateway", "--port", "0").wait_line("ready:").split()[-1]
