"""Fuzzing of the real programs: mutated and random messages by hostile members, which must not crash or fill them.

    python -m benchmarks.fuzz --frames 1000000 --seed 1

Each target gets that many messages, of one frame or more. After each batch a good peer must be served as it should be.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.fuzz.run import Outcome, fuzz
from tests.fuzz.targets import TARGETS

MB = 1e6


@click.command(context_settings={"show_default": True})
@click.option("--frames", type=click.IntRange(min=1000), default=1_000_000, help="Messages for each target.")
@click.option("--seed", default=1)
@click.option("--targets", default=",".join(TARGETS), help="Which ones, with commas between.")
@click.option("--batches", type=click.IntRange(min=8), default=40)
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there.")
def main(frames: int, seed: int, targets: str, batches: int, json_path: Path | None) -> None:
    """Ends with status 1 at the first crash, hang or wrong answer."""
    outcomes = []
    for name in targets.split(","):
        if name not in TARGETS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(TARGETS)}", param_hint="--targets")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            os.environ["SWARM_HOME"] = folder
            with TARGETS[name](Path(folder), seed) as target:
                outcomes.append(fuzz(target, frames, seed, batches, _show))
        print(file=sys.stderr)
    Console().print(_table(outcomes))
    if json_path is not None:
        figures = [{**dataclasses.asdict(each), "growth": each.growth} for each in outcomes]
        json_path.write_text(json.dumps({"seed": seed, "targets": figures}, indent=1), encoding="utf-8")


def _show(outcome: Outcome) -> None:
    resident = outcome.resident[-1] / MB
    print(f"\r{outcome.target}: {outcome.messages} messages, {resident:.1f} MB ", end="", file=sys.stderr, flush=True)


def _table(outcomes: list[Outcome]) -> Table:
    table = Table("target", "messages", "frames", "s", "MB at first", "in the middle", "at the end", "log, kB")
    for each in outcomes:
        middle = each.resident[len(each.resident) // 2]
        resident = [f"{value / MB:.1f}" for value in (each.resident[0], middle, each.resident[-1])]
        figures = (str(each.messages), str(each.frames), f"{each.seconds:.0f}", *resident, f"{each.logged / 1e3:.0f}")
        table.add_row(each.target, *figures)
    return table


if __name__ == "__main__":
    main()
