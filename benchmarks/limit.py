"""Each backend's share of what the memory allows: decoding reads every weight once for each token.

    python -m benchmarks.limit MODEL --engines llama_cpp:q4_0,llama_cpp:q8_0,transformers:float32 --threads 2

`--small-pages` measures the engines as on a system without large pages (`backends.huge_pages`).

The bandwidth is what as many threads read of a large array with one NumPy operation that does next to nothing with it.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from backends import Batch, Options, Row, Span, registry
from benchmarks.kit.swarm import machine_facts
from benchmarks.ring import print_progress
from swarm.models import resolve
from swarm.system import home
from swarm.system.process import user_errors

ARRAY = 1 << 30  # bytes, far more than any cache
PASSES = 5
_DISABLE_LARGE_PAGES = 41  # PR_SET_THP_DISABLE of prctl(2)


def bandwidth(threads: int) -> float:
    """Bytes per second that so many threads read, the best of a few passes."""
    parts = np.array_split(np.ones(ARRAY, np.uint8), threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES):
            started = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, ARRAY / (time.perf_counter() - started))
    return best


def options_of(engine: str, threads: int) -> tuple[str, Options]:
    """`llama_cpp:q4_0` as a backend's name and what to tell it."""
    name, _, precision = engine.partition(":")
    plain = precision in ("", "auto", "float32", "bfloat16", "float16")
    return name, Options(
        device="cpu",
        dtype=(precision or "auto") if plain else "auto",
        quantize=None if plain else precision,
        threads=threads,
        kv_tokens=1024,
        cache=home.folder("spans"),
    )


def measure(model: Path, engine: str, threads: int, tokens: int) -> dict[str, Any]:
    """Decode with the whole model in this process."""
    name, options = options_of(engine, threads)
    backend = registry.find(name)
    info = backend.describe(model)
    stage = backend.load(model, Span(0, info.blocks), options)
    seconds = []
    given = np.array([5], np.int32)
    for position in range(tokens):
        started = time.perf_counter()
        logits = stage.forward(Batch(given, [Row("limit", position, 1, 1)], stage.span))
        given = np.array([logits[0].argmax()], np.int32)
        seconds.append(time.perf_counter() - started)
    weights = stage.memory().weights
    # Of the embedding one row is read, unless it is the head too.
    blocks, (embedding, head) = sum(info.block_bytes), info.edge_bytes
    tied = json.loads((model / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", False)
    read = weights if tied else weights * (blocks + head) / (blocks + embedding + head)
    return {
        "engine": engine,
        "rate": 1 / statistics.median(seconds[1:]),
        "weights": weights,
        "read": read,
    }


@click.command(help="Weights read per second by each backend beside what the memory allows.")
@click.argument("model", default="smollm2-135m")
@click.option("--engines", default="llama_cpp:q4_0,llama_cpp:q8_0,transformers:bfloat16,transformers:float32")
@click.option("--threads", type=click.IntRange(1), default=lambda: psutil.cpu_count(logical=False) or 1)
@click.option("--tokens", type=click.IntRange(2), default=48, show_default=True)
@click.option("--small-pages", is_flag=True, help="Linux: as if there were no large ones.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures there.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw a picture there (needs matplotlib).")
@click.option("--one", hidden=True)
def main(
    model: str,
    engines: str,
    threads: int,
    tokens: int,
    small_pages: bool,
    json_file: Path | None,
    picture: Path | None,
    one: str | None,
) -> None:
    """Measure each engine in a process of its own, and print its share of what the memory allows."""
    if small_pages and sys.platform != "linux":
        raise click.UsageError("--small-pages is for Linux; nothing uses large pages elsewhere")
    with user_errors():
        resolved = resolve.resolve(model)
        if one and small_pages:
            ctypes.CDLL(None).prctl(_DISABLE_LARGE_PAGES, 1, 0, 0, 0)
        if one:
            print("figures:", json.dumps(measure(resolved.path, one, threads, tokens)), flush=True)
            return
        found: list[dict[str, Any]] = []
        speed = bandwidth(threads)
        for engine in engines.split(","):
            print_progress(f"measuring {engine}")
            command = [sys.executable, "-m", "benchmarks.limit", str(resolved.path), "--one", engine]
            command += ["--threads", str(threads), "--tokens", str(tokens)]
            command += ["--small-pages"] * small_pages
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            line = next((line for line in done.stdout.splitlines() if line.startswith("figures:")), None)
            if line is None:
                raise click.ClickException(f"{engine} failed")
            found.append(json.loads(line.partition(":")[2]))
        speed = max(speed, bandwidth(threads))
    for figures in found:
        figures["share"] = figures["read"] * figures["rate"] / speed
    result = {
        "model": resolved.name,
        "threads": threads,
        "bandwidth": speed,
        "engines": found,
        "machine": machine_facts(),
    }
    Console(width=100).print(table(result))
    if json_file:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if picture:
        plot(result, picture)


def table(result: dict[str, Any]) -> Table:
    """The figures for people."""
    title = f"{result['model']}, {result['threads']} thread(s); memory read at {result['bandwidth'] / 1e9:.1f} GB/s"
    drawn = Table(title=title, box=None, header_style="dim", title_justify="left")
    drawn.add_column("", no_wrap=True)
    for name in ("tokens/s", "read per token, MB", "GB/s", "of the limit"):
        drawn.add_column(name, justify="right")
    for engine in result["engines"]:
        drawn.add_row(
            engine["engine"],
            f"{engine['rate']:.1f}",
            f"{engine['read'] / 1e6:.0f}",
            f"{engine['read'] * engine['rate'] / 1e9:.1f}",
            f"{engine['share']:.2f}",
        )
    return drawn


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw the figures into a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    engines = result["engines"]
    bars = axes.barh([e["engine"] for e in engines], [e["read"] * e["rate"] / 1e9 for e in engines], color="#2f6fb0")
    axes.bar_label(bars, [f"{e['rate']:.1f} tokens/s" for e in engines], padding=3, fontsize=8)
    axes.axvline(result["bandwidth"] / 1e9, color="#8a8f98", linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel("weights read, GB/s; dashed: what the memory gives")
    axes.set_title(f"{result['model']}, {result['threads']} thread(s)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    picture.savefig(path, dpi=110)
    pyplot.close(picture)


if __name__ == "__main__":
    main()
