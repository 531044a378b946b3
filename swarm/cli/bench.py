"""`swarm bench`: how fast a running swarm answers one stream, seen from this client."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from swarm.client.client import ServedModel, SwarmClient

FIRST_ID = 5  # small ids are in every vocabulary; the lowest are often special


@dataclass(frozen=True)
class Run:
    """Seconds to the first token, and tokens per second after it."""

    first_token: float
    rate: float


def measure(client: SwarmClient, model: ServedModel, prompt: int, tokens: int, runs: int) -> Iterator[Run]:
    """One greedy stream after the other; the first, which warms up, is not given.

    Args:
        prompt: tokens of the prompt.
        tokens: tokens of each answer, at least 2.
    """
    ids = [FIRST_ID + i % 50 for i in range(prompt)]
    for number in range(runs + 1):
        with client.session(model.name, prompt + tokens) as session:
            times = [time.perf_counter()]
            times += [time.perf_counter() for _ in session.stream(ids, tokens)]
        if number:
            yield Run(times[1] - times[0], (len(times) - 2) / (times[-1] - times[1]))


def as_table(model: ServedModel, runs: list[Run]) -> Table:
    table = Table(box=None, header_style="dim", title=f"{model.name} on {len(model.servers)} servers, one stream")
    for title in ("", "median", "least", "most"):
        table.add_column(title, justify="right" if title else "left")
    rates, waits = [run.rate for run in runs], [run.first_token * 1000 for run in runs]
    for name, values, digits in (("tokens/s", rates, 1), ("first token, ms", waits, 0)):
        table.add_row(name, *(f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))))
    return table
