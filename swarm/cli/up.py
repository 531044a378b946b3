"""`swarm up`: a whole swarm on this machine, as the real programs in processes of their own."""

from __future__ import annotations

import itertools
import logging
import os
import re
import subprocess
import sys
import threading
import time
import webbrowser
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack

from backends import Span, registry
from swarm.errors import SwarmError
from swarm.models import resolve
from swarm.system import home
from swarm.system.jobs import Job
from swarm.system.join import remember
from swarm.system.process import PARENT, StopSignal, announce

log = logging.getLogger(__name__)

READY_TIMEOUT = 600.0  # s; a large model takes its time to load
STOP_TIMEOUT = 10.0  # s for a process to end by itself
SHARED = "0.0.0.0:7700"  # where the directory listens when other machines may join, as swarm-directory does
RESTARTS = 3  # of one server, until it is left alone


class Child:
    """A program of the swarm in a process of its own. It ends when this process does, however that ends."""

    def __init__(self, name: str, module: str, *arguments: str, job: Job, join: str = "") -> None:
        self.name = name
        self._command = [sys.executable, "-m", module, *arguments]
        # The token goes by the environment: command lines are visible to every user of the machine.
        self._environment = {**os.environ, PARENT: "stdin", "PYTHONUNBUFFERED": "1", "SWARM_JOIN": join}
        self._job = job
        self.restarts = 0
        self.start()

    def start(self) -> None:
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
        """Its first line of the contract. Raises: SwarmError: it ended without one."""
        limit = time.monotonic() + READY_TIMEOUT
        while not self._first.wait(0.2):
            if stop.is_set():
                raise KeyboardInterrupt
            if time.monotonic() > limit:
                raise SwarmError(f"{self.name} was not ready within {READY_TIMEOUT:.0f} s")
        if not self.line:
            self.process.wait()
            raise SwarmError(f"{self.name} did not start: {self._last[-1] if self._last else 'it said nothing'}")
        return self.line

    def ask_to_stop(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()

    def stop(self) -> None:
        self.ask_to_stop()
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def split_evenly(blocks: int, servers: int) -> list[Span]:
    """Spans of nearly the same length that cover all blocks.

    Raises:
        SwarmError: more servers than blocks.
    """
    if not 1 <= servers <= blocks:
        raise SwarmError(f"--servers {servers}: a model of {blocks} blocks takes 1 to {blocks} servers", 2)
    bounds = [round(blocks * i / servers) for i in range(servers + 1)]
    return [Span(start, end) for start, end in itertools.pairwise(bounds)]


def up(
    model: str,
    servers: int,
    port: int,
    browser: bool,
    share: bool,
    backend: str,
    options: Sequence[str],
    stop: StopSignal,
    verify: int = 0,
) -> None:
    """Start directory, servers and gateway; print `join:` and `ready:`; watch over them until `stop` is set.

    Args:
        share: whether directory and servers listen on the network, so that other machines can join. The gateway does
            not.
        verify: how many parts of each answer the gateway has computed anew.
    """
    if backend != registry.AUTO:
        registry.find(backend)  # before a model is fetched for it
    resolved = resolve.resolve(model)
    print(f"model: {resolved.name}, from {resolved.source}", file=sys.stderr, flush=True)
    spans = split_evenly(registry.describe(backend, resolved.path).blocks, servers)
    job = Job()
    with ExitStack() as children:

        def start(name: str, module: str, *arguments: str, join: str = "") -> Child:
            child = Child(name, module, *arguments, job=job, join=join)
            children.callback(child.stop)
            return child

        state = home.folder("up")
        place = SHARED if share else "127.0.0.1:0"
        directory = start("directory", "swarm", "directory", "--bind", place, "--state-dir", str(state))
        token = directory.wait_ready(stop).removeprefix("join:").strip()
        remember(token)
        gateway = start(
            "gateway", "openai_api.cli", "--host", "127.0.0.1", "--port", str(port), "--verify", str(verify), join=token
        )
        running = [
            start(
                f"server-{i}",
                "swarm",
                "server",
                str(resolved.path),
                *("--model-name", resolved.name, "--blocks", str(span), "--bind", f"{place.split(':')[0]}:0"),
                *("--name", f"up-{i}", "--drain", "2", "--backend", backend, *options),
                join=token,
            )
            for i, span in enumerate(spans, 1)
        ]
        url = gateway.wait_ready(stop).split()[-1]
        for child in running:
            child.wait_ready(stop)
        stop.abrupt = False
        announce(f"join: {token}")
        announce(f"ready: {url}")
        print(_hint(url, resolved.name), file=sys.stderr, flush=True)
        if browser:
            webbrowser.open(url)
        _watch(directory, gateway, running, stop)
        print("stopping", file=sys.stderr, flush=True)
        for child in (gateway, *running):
            child.ask_to_stop()  # all at once; the stack then waits for each


def _watch(directory: Child, gateway: Child, servers: list[Child], stop: StopSignal) -> None:
    while not stop.wait(0.5):
        for child in (directory, gateway):
            if child.process.poll() is not None:
                raise SwarmError(f"{child.name} stopped (exit code {child.process.returncode}), so the swarm ends")
        for child in list(servers):
            if child.process.poll() is None:
                continue
            code = child.process.returncode
            if child.restarts >= RESTARTS:
                print(f"{child.name} stopped again (exit code {code}) and is left alone", file=sys.stderr, flush=True)
                servers.remove(child)
                continue
            child.restarts += 1
            print(f"{child.name} stopped (exit code {code}); starting it again", file=sys.stderr, flush=True)
            child.start()


def _hint(url: str, model: str) -> str:
    return (
        f"Open {url} in a browser, or ask from another terminal:\n"
        f'  swarm chat\n  swarm run {model} "What is the capital of France?"\n  swarm status\nCtrl-C stops everything.'
    )
