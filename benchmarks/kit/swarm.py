"""Whole swarms on this machine for a benchmark: a directory and servers, the real programs, each in its process."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from backends import Span
from benchmarks.kit.traffic import TRAFFIC
from swarm.client.client import SwarmClient
from swarm.system.process import PARENT

ROOT = Path(__file__).parents[1]
READY_TIMEOUT = 900.0  # s
STOP_TIMEOUT = 15.0  # s


class ProgramFailed(Exception):
    """A program of the swarm ended before it was ready."""


class Program:
    """A process that says on standard output when it is ready; its log goes to `folder`."""

    def __init__(
        self, folder: Path, name: str, module: str, *arguments: str, python: str = sys.executable, **environment: str
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self.started = time.monotonic()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, PARENT: "stdin", "PYTHONPATH": os.pathsep.join(paths), **environment},
                text=True,
                encoding="utf-8",
            )
        self.stats = psutil.Process(self._process.pid)

    def wait_for(self, word: str) -> str:
        """The rest of the first line that begins with `word:`.

        Raises:
            ProgramFailed: the program ended, or said nothing for too long; the text ends with its last words.
        """
        assert self._process.stdout is not None
        limit = threading.Timer(READY_TIMEOUT, self._process.kill)
        limit.start()
        try:
            for line in self._process.stdout:
                if line.startswith(f"{word}:"):
                    return line.partition(":")[2].strip()
        finally:
            limit.cancel()
        raise ProgramFailed(f"{self.name} did not start: {self.log.strip().rpartition(chr(10))[2]}")

    @property
    def log(self) -> str:
        """Everything that it has logged so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def cpu_seconds(self) -> float:
        """Of all its threads since it began."""
        times = self.stats.cpu_times()
        return times.user + times.system

    def ask(self, line: str) -> str:
        """Send it a line; the line that it answers.

        Raises:
            ProgramFailed: it ended instead.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise ProgramFailed(f"{self.name} ended: {self.log.strip().rpartition(chr(10))[2]}")
        return answer

    def end(self) -> None:
        """Stop one that does not end with its standard input."""
        self._process.terminate()
        self.stop()

    def stop(self) -> None:
        """End it, by force where it does not end in time."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True)
class SentMessage:
    """A message that one server has sent to another for a session.

    Attributes:
        tokens: 1 in decoding, more in a part of a prompt.
        hidden: it carries hidden states; otherwise token ids, which close the ring.
        size: bytes given to ZeroMQ, header and tensor; encryption and TCP come on top.
    """

    tokens: int
    hidden: bool
    size: int


class RingServer(Program):
    """A server of a span.

    Attributes:
        weights: bytes of its tensors, as it tells the directory.
        load_time, ready_after: seconds, of loading and since the process was started.
    """

    def __init__(self, folder: Path, name: str, join: str, model: Path, served_as: str, span: Span, *options: str):
        self.span = span
        self._traffic = folder / f"{name}.json"
        arguments = ("server", str(model), "--model-name", served_as, "--blocks", str(span), "--name", name, *options)
        super().__init__(
            folder, name, "benchmarks.kit.traffic", *arguments, SWARM_JOIN=join, **{TRAFFIC: str(self._traffic)}
        )
        self.weights = 0
        self.ready_after = self.load_time = math.nan

    def wait_ready(self) -> None:
        """Wait until it serves."""
        self.wait_for("ready")
        self.ready_after = time.monotonic() - self.started
        if found := re.search(r"loaded blocks .* in ([\d.]+) s", self.log):
            self.load_time = float(found[1])

    def sent(self) -> list[SentMessage]:
        """What it has sent to other servers; known once it has been stopped."""
        return [SentMessage(*entry) for entry in json.loads(self._traffic.read_text(encoding="utf-8"))]


class BenchmarkSwarm:
    """A directory, and any number of rings that share it: each serves the model under a name of its own.

    State, keys and logs lie in `folder`, which becomes the `SWARM_HOME` of this process and of those that it starts.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: list[Program] = []
        self.join = ""
        self._client: SwarmClient | None = None

    def __enter__(self) -> Self:
        os.environ["SWARM_HOME"] = str(self._folder)
        state = str(self._folder / "directory")
        directory = Program(
            self._folder, "directory", "swarm", "directory", "--bind", "127.0.0.1:0", "--state-dir", state
        )
        self._programs.append(directory)
        try:
            self.join = directory.wait_for("join")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def client(self) -> SwarmClient:
        """A client that knows the rings which were ready when it was first asked for; it ends with the swarm."""
        if self._client is None:
            self._client = SwarmClient(self.join)
        return self._client

    def add(self, name: str, model: Path, spans: Sequence[Span], *options: str) -> list[RingServer]:
        """Start a ring, one server after the other, so that the load time of each is its own.

        Raises:
            ProgramFailed: a server could not start.
        """
        ring = []
        for number, span in enumerate(spans, 1):
            server = RingServer(self._folder, f"{name}-{number}", self.join, model, name, span, *options)
            self._programs.append(server)
            ring.append(server)
            server.wait_ready()
        with SwarmClient(self.join) as client:
            weights = {server.name: server.load.memory_used for each in client.models() for server in each.servers}
        for server in ring:
            server.weights = weights[server.name]
        return ring

    def stop(self) -> None:
        """End everything, the directory last."""
        if self._client is not None:
            self._client.close()
            self._client = None
        while self._programs:
            self._programs.pop().stop()


def machine_facts() -> dict[str, Any]:
    """What a reader has to know of this machine to judge figures that were taken on it."""
    import platform
    from importlib.metadata import version

    packages = ("torch", "transformers", "pyzmq", "msgspec", "numpy")
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def _processor() -> str:
    import platform

    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return platform.processor()
    return found[1] if found else platform.processor()
