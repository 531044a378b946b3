"""Report of a ring benchmark: figures from what was measured, a table and a picture from the figures."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.kit.engine import Contender

MB = 1e6


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of what was measured in the same round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def figures(engines: Sequence[Contender]) -> list[dict[str, Any]]:
    """What is published of each engine. The first one is the base of the ratios, the second one another base.

    Rates in tokens per second, times in seconds, memory and messages in bytes.
    """
    base, stage = engines[0], engines[1]
    return [
        {
            "name": engine.name,
            "servers": engine.servers,
            "rate": statistics.median(engine.rates),
            "rates": engine.rates,
            "ratio": ratio(engine.rates, base.rates),
            "ratio_to_stage": ratio(engine.rates, stage.rates),
            "cpu_per_token": statistics.median(engine.cpu),
            "first_token": statistics.median(engine.first),
            "first_token_long": statistics.median(engine.first_long),
            "tokens_as_whole": engine.tokens == base.tokens,
            "ready_after": [process.ready_after for process in engine.processes],
            "load_time": [process.load_time for process in engine.processes],
            "weights": [process.weights for process in engine.processes],
            "resident": engine.resident,
            "unique": engine.unique,
            "idle_cpu": engine.idle,
            **traffic(engine),
        }
        for engine in engines
    ]


def traffic(engine: Contender) -> dict[str, float | None]:
    """Messages between servers per token of decoding, and their mean sizes: at a boundary, and back to the head."""
    decoding = [sent for sent in engine.sent if sent.tokens == 1]
    boundary = [sent.size for sent in decoding if sent.hidden]
    closing = [sent.size for sent in decoding if not sent.hidden]
    return {
        "messages_per_token": len(decoding) / engine.decoded if engine.servers else None,
        "bytes_per_boundary": statistics.mean(boundary) if boundary else None,
        "bytes_to_head": statistics.mean(closing) if closing else None,
    }


def tables(figures: dict[str, Any]) -> list[Table]:
    """Speed and messages; start and memory."""
    settings = figures["settings"]
    speed = _table(
        f"{settings['model']}, {settings['dtype']}, {settings['threads']} thread(s) a forward, "
        f"{settings['tokens']} tokens, median of {settings['runs']} round(s)",
        ("tokens/s", "ratio", "to one stage", "CPU ms/token", "messages/token", "bytes/boundary"),
        ("first token, ms", f"after {settings['long_prompt']}, ms"),
    )
    start = _table(
        "each process: its start and its memory",
        ("load, s", "ready, s", "weights, MB", "resident, MB", "of its own, MB", "idle CPU, %"),
    )
    for engine in figures["engines"]:
        speed.add_row(
            engine["name"],
            f"{engine['rate']:.1f}",
            f"{engine['ratio']:.3f}",
            f"{engine['ratio_to_stage']:.3f}",
            f"{engine['cpu_per_token'] * 1e3:.1f}",
            _or_dash(engine["messages_per_token"], "g"),
            _or_dash(engine["bytes_per_boundary"], ".0f"),
            f"{engine['first_token'] * 1e3:.0f}",
            f"{engine['first_token_long'] * 1e3:.0f}",
        )
        start.add_row(
            engine["name"],
            _range(engine["load_time"], "{:.1f}"),
            _range(engine["ready_after"], "{:.1f}"),
            *(_range((size / MB for size in engine[kind]), "{:.0f}") for kind in ("weights", "resident", "unique")),
            _range((share * 100 for share in engine["idle_cpu"]), "{:.1f}"),
        )
    return [speed, start]


def _table(title: str, *columns: Iterable[str]) -> Table:
    drawn = Table(title=title, box=None, header_style="dim", title_justify="left")
    drawn.add_column("", no_wrap=True)
    for name in itertools.chain(*columns):
        drawn.add_column(name, justify="right")
    return drawn


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _range(values: Iterable[float], form: str) -> str:
    """`3 to 5`, or one number where they do not differ."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    least, most = form.format(min(known)), form.format(max(known))
    return least if least == most else f"{least} to {most}"


def plot(figures: dict[str, Any], path: Path) -> None:
    """Tokens per second with the ratio on each bar, and beside it the memory of each process."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    engines, settings = figures["engines"], figures["settings"]
    figure, (speed, memory) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    labels = [engine["name"].replace(", ", "\n") for engine in engines]
    colours = ["#8a8f98" if engine["servers"] == 0 else "#2f6fb0" for engine in engines]
    bars = speed.bar(labels, [engine["rate"] for engine in engines], color=colours)
    speed.bar_label(bars, [f"{engine['ratio']:.2f}" for engine in engines], padding=2)
    speed.set_ylabel("tokens/s, decoding")
    speed.set_title("speed, and its ratio to the whole model", fontsize=10)
    at = 0.0
    ticks: list[tuple[float, str]] = []
    for engine, label, colour in zip(engines, labels, colours, strict=True):
        places = [at + i for i in range(len(engine["resident"]))]
        resident = [size / MB for size in engine["resident"]]
        weights = [size / MB for size in engine["weights"]]
        first = not ticks
        memory.bar(places, resident, 0.9, color=colour, alpha=0.45, label="resident" if first else None)
        memory.bar(places, weights, 0.9, color=colour, label="weights" if first else None)
        ticks.append((statistics.mean(places), label))
        at = places[-1] + 2.0
    memory.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
    memory.set_ylabel("MB per process")
    memory.set_title("memory of each process", fontsize=10)
    memory.legend(fontsize=8, frameon=False)
    for axes in (speed, memory):
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{settings['model']}, {settings['dtype']}, {settings['threads']} threads a forward, all on one machine",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
