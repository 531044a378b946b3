"""Engines that a benchmark compares: a function that generates, its processes, and what was measured of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import psutil

from benchmarks.kit.swarm import RingServer, SentMessage
from benchmarks.kit.whole_model import TimedGeneration

SETTLE = 2.0  # s for thread pools to go to sleep
IDLE = 3.0  # s over which processes that have nothing to do are then watched


class MeasuredProcess(Protocol):
    """A process that holds weights (bytes) and computes: a server, or the whole model. Times in seconds."""

    stats: psutil.Process
    weights: int
    ready_after: float
    load_time: float

    def cpu_seconds(self) -> float:
        """Processor time that the process has taken, in seconds."""


@dataclass
class Contender:
    """One side of a comparison, and what was measured of it so far.

    Attributes:
        servers: of a ring; 0 for a process that holds the whole model.
        rates: tokens per second of decoding, one a round.
        cpu: seconds of processor time per decoded token, over all its processes.
        first, first_long: seconds to the first token after a short and a long prompt.
        idle: processor time per second of each process while it has nothing to do.
        resident, unique: bytes of each process, with and without what it shares with others (mapped files, libraries).
        sent: messages between its servers, in decoding and with prompts.
        decoded: tokens after the first of each generation.
    """

    name: str
    servers: int
    generate: Callable[[list[int], int], TimedGeneration]
    processes: Sequence[MeasuredProcess]
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    first_long: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    unique: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    sent: list[SentMessage] = field(default_factory=list)
    decoded: int = 0

    def run(self, ids: list[int], tokens: int) -> TimedGeneration:
        """Generate once, and count the tokens that were decoded."""
        result = self.generate(ids, tokens)
        self.decoded += tokens - 1
        return result

    def measure(self, short: list[int], long: list[int], tokens: int) -> None:
        """Run once after a short and once after a long prompt; note speed, waits and processor time."""
        before = sum(process.cpu_seconds() for process in self.processes)
        result = self.run(short, tokens)
        self.cpu.append((sum(process.cpu_seconds() for process in self.processes) - before) / tokens)
        self.rates.append(result.rate)
        self.first.append(result.first)
        self.tokens = result.tokens
        self.first_long.append(self.run(long, 1).first)

    def look_at_memory(self) -> None:
        """Note how much memory each process takes, with and without what it shares."""
        for process in self.processes:
            memory = process.stats.memory_full_info()
            self.resident.append(memory.rss)
            self.unique.append(memory.uss)

    def collect_traffic(self) -> None:
        """What its servers have sent to each other; to be called when they have ended."""
        for process in self.processes:
            if isinstance(process, RingServer):
                self.sent += process.sent()


def watch_idle(engines: Sequence[Contender]) -> None:
    """Note what processor time the processes take while no request reaches them."""
    time.sleep(SETTLE)
    before = [(engine, process, process.cpu_seconds()) for engine in engines for process in engine.processes]
    started = time.monotonic()
    time.sleep(IDLE)
    for engine, process, seconds in before:
        engine.idle.append((process.cpu_seconds() - seconds) / (time.monotonic() - started))
