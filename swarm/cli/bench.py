"""`swarm bench`: the speed of one stream of a running swarm, seen from this client."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import click
from rich.console import Console
from rich.table import Table

from swarm.cli.generate import pick_model
from swarm.cli.options import join_option, json_option
from swarm.client.client import ServedModel, SwarmClient
from swarm.system.join import find_join_token
from swarm.system.process import user_errors

FIRST_ID = 5  # small ids are in every vocabulary; the lowest are often special


@click.command()
@click.argument("model", required=False)
@join_option
@click.option("--prompt-tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Of each answer.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@json_option
def bench(model: str | None, join_token: str | None, prompt_tokens: int, tokens: int, runs: int, as_json: bool) -> None:
    """How fast the swarm answers one stream."""
    with user_errors(), SwarmClient(find_join_token(join_token)) as swarm:
        served = pick_model(swarm, model)
        done = []
        with click.progressbar(length=runs, label="measuring", file=sys.stderr) as bar:
            for run in measure(swarm, served, prompt_tokens, tokens, runs):
                done.append(run)
                bar.update(1)
        if as_json:
            click.echo(json.dumps({"model": served.name, "runs": [asdict(run) for run in done]}, indent=2))
        else:
            Console().print(bench_table(served, done))


@dataclass(frozen=True)
class BenchRun:
    """One measured answer: seconds to the first token, and tokens per second after it."""

    first_token: float
    rate: float


def measure(client: SwarmClient, model: ServedModel, prompt: int, tokens: int, runs: int) -> Iterator[BenchRun]:
    """The measurements of one greedy stream after the other; the first, which warms up, is left out.

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
            yield BenchRun(times[1] - times[0], (len(times) - 2) / (times[-1] - times[1]))


def bench_table(model: ServedModel, runs: list[BenchRun]) -> Table:
    """The runs' medians and extremes, for people."""
    table = Table(box=None, header_style="dim", title=f"{model.name} on {len(model.servers)} servers, one stream")
    for title in ("", "median", "least", "most"):
        table.add_column(title, justify="right" if title else "left")
    rates, waits = [run.rate for run in runs], [run.first_token * 1000 for run in runs]
    for name, values, digits in (("tokens/s", rates, 1), ("first token, ms", waits, 0)):
        table.add_row(name, *(f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values))))
    return table
