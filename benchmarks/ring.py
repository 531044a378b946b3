"""The cost of a swarm: the ring of 1, 2, 4 ... servers on this machine beside the whole model in one process.

    python -m benchmarks.ring --model smollm2-135m --json ring.json --plot docs/ring.png

Everything is started once and stays loaded; then each round runs every engine once, in an order that rotates, so that
other work on the machine hits all alike. Ratios are made within a round, and their median is given.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil
from rich.console import Console

from backends import ModelInfo, registry
from benchmarks.kit import report
from benchmarks.kit.engine import Contender, watch_idle
from benchmarks.kit.swarm import BenchmarkSwarm, machine_facts
from benchmarks.kit.whole_model import Kind, TimedGeneration, WholeModel, timed
from swarm.cli.programs.up import split_evenly
from swarm.models import resolve
from swarm.system.process import user_errors

WIDTH = 120  # columns of the tables, also where the output is no terminal
SHORT = 8  # tokens of the short prompt


@dataclass(frozen=True)
class RingSettings:
    """The size of a run: tokens of each generation, and of the long prompt; servers of each ring."""

    model: str
    dtype: str
    threads: int
    servers: tuple[int, ...]
    tokens: int
    runs: int
    long_prompt: int


def prompts(vocabulary: int, *lengths: int) -> Iterator[list[int]]:
    """Random token ids, always the same: speed does not depend on what they mean."""
    generator = random.Random(1)
    for length in lengths:
        yield [generator.randrange(vocabulary) for _ in range(length)]


def over_swarm(swarm: BenchmarkSwarm, model: str) -> Callable[[list[int], int], TimedGeneration]:
    """A function that generates over a swarm, for `Contender`."""

    def generate(ids: list[int], tokens: int) -> TimedGeneration:
        with swarm.client().session(model, len(ids) + tokens) as session:
            return timed(lambda: session.stream(ids, tokens))

    return generate


def print_progress(text: str) -> None:
    """Print a line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def wholes(resources: ExitStack, settings: RingSettings, model: Path) -> Iterator[Contender]:
    """The whole model in one process, in two ways. The first is the base of all ratios."""
    kinds: list[tuple[Kind, str]] = [("huggingface", "whole, Hugging Face"), ("stage", "whole, one stage")]
    for kind, title in kinds:
        print_progress(f"starting: {title}")
        whole = resources.enter_context(WholeModel(kind, model, settings.dtype, settings.threads))
        yield Contender(title, 0, whole.generate, [whole])


def rings(swarm: BenchmarkSwarm, settings: RingSettings, model: Path, blocks: int) -> Iterator[Contender]:
    """The model over each number of servers."""
    room = str(max(8192, settings.long_prompt + settings.tokens))
    options = ("--threads", str(settings.threads), "--dtype", settings.dtype, "--device", "cpu", "--kv-tokens", room)
    for count in settings.servers:
        title = f"{count} server{'s' if count > 1 else ''}"
        print_progress(f"starting: {title}")
        servers = swarm.add(f"ring-{count}", model, split_evenly(blocks, count), *options)
        yield Contender(title, count, over_swarm(swarm, f"ring-{count}"), servers)


def compare(settings: RingSettings, model: Path, info: ModelInfo) -> list[Contender]:
    """Start everything, measure it, end it."""
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        engines = list(wholes(resources, settings, model))
        swarm = resources.enter_context(BenchmarkSwarm(folder))
        engines += rings(swarm, settings, model, info.blocks)
        short, long = prompts(info.vocab_size, SHORT, settings.long_prompt)
        for engine in engines:
            print_progress(f"warming up: {engine.name}")
            engine.run(short, min(settings.tokens, 8))
            engine.run(long, 1)
        watch_idle(engines)
        for number in range(settings.runs):
            print_progress(f"round {number + 1} of {settings.runs}")
            first = number % len(engines)
            for engine in engines[first:] + engines[:first]:
                engine.measure(short, long, settings.tokens)
                print_progress(f"  {engine.name}: {engine.rates[-1]:.1f} tokens/s")
        for engine in engines:
            engine.look_at_memory()
        swarm.stop()
        for engine in engines:
            engine.collect_traffic()
    return engines


def _counts(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 1,2,4") from None
    if min(counts) < 1 or len(set(counts)) < len(counts):
        raise click.BadParameter("each number is at least 1, and none comes twice")
    return counts


@click.command(help="The ring of several servers on this machine beside the whole model in one process.")
@click.option("--model", default="smollm2-135m", show_default=True, help="Folder, repo id or catalogue name.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=lambda: psutil.cpu_count(logical=False) or 1)
@click.option("--servers", default="1,2,4", show_default=True, callback=_counts)
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Of each generation.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--long-prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures there.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw a picture there (needs matplotlib).")
def main(
    model: str,
    dtype: str,
    threads: int,
    servers: tuple[int, ...],
    tokens: int,
    runs: int,
    long_prompt: int,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Measure rings of several lengths beside the whole model, and print what they cost."""
    with user_errors():
        found = resolve.resolve(model)
        info = registry.find(registry.DEFAULT).describe(found.path)
        if info.context_length:
            long_prompt = min(long_prompt, info.context_length - 1)
        settings = RingSettings(found.name, dtype, threads, servers, tokens, runs, long_prompt)
        busy = psutil.cpu_percent(1.0)
        print_progress(f"the machine is {busy:.0f} % busy with other work")
        engines = compare(settings, found.path, info)
    figures = {
        "settings": {**asdict(settings), "blocks": info.blocks, "hidden_size": info.hidden_size},
        "machine": {**machine_facts(), "busy_before": busy},
        "engines": report.figures(engines),
    }
    console = Console(width=max(Console().width, WIDTH))
    for table in report.tables(figures):
        console.print(table)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if plot:
        report.plot(figures, plot)


if __name__ == "__main__":
    main()
