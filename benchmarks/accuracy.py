"""The cost of a precision: perplexity, and distance of predictions from those in float32, on this project's own pages.

    python -m benchmarks.accuracy MODEL --engines llama_cpp:q8_0,llama_cpp:q4_0

Every engine reads the same windows of text. The Kullback-Leibler divergence is the mean over tokens, in nats, from the
prediction in float32 by the backend transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from backends import Batch, Row, Span, registry
from backends.stage import Array
from benchmarks.limit import options_of
from benchmarks.ring import print_progress
from swarm.models import resolve
from swarm.sampling import log_softmax
from swarm.system.process import user_errors
from swarm.tokenizer import Tokenizer

PAGES = Path(__file__).parents[1] / "docs"
TEXT = ("architecture.md", "protocol.md", "security.md")
REFERENCE = "transformers:float32"


def windows(tokenizer: Tokenizer, length: int, count: int) -> list[list[int]]:
    """The text's tokens in pieces of `length`."""
    ids = tokenizer.encode("\n\n".join((PAGES / name).read_text(encoding="utf-8") for name in TEXT))
    return [ids[at : at + length] for at in range(0, len(ids) - length, length)][:count]


def predictions(model: Path, engine: str, pieces: list[list[int]], threads: int) -> Iterator[Array]:
    """`[tokens, vocab]` log-probabilities of what follows each token, window by window."""
    name, options = options_of(engine, threads)
    backend = registry.find(name)
    stage = backend.load(model, Span(0, backend.describe(model).blocks), options)
    for ids in pieces:
        batch = Batch(np.array(ids, np.int32), [Row("accuracy", 0, len(ids), len(ids))], stage.span)
        logits = stage.forward(batch)
        stage.free("accuracy")
        yield np.stack([log_softmax(row) for row in logits]).astype(np.float32)


def compare(model: Path, engines: list[str], pieces: list[list[int]], threads: int) -> list[dict[str, Any]]:
    """Perplexity of each engine; divergence from the reference, and how often the likeliest token is the same."""
    reference = list(predictions(model, REFERENCE, pieces, threads))
    found = []
    for engine in engines:
        print_progress(f"measuring {engine}")
        losses, divergences, same = [], [], []
        mine = iter(reference) if engine == REFERENCE else predictions(model, engine, pieces, threads)
        for ids, wanted, got in zip(pieces, reference, mine, strict=True):
            losses.append(-got[np.arange(len(ids) - 1), ids[1:]])
            divergences.append((np.exp(wanted) * (wanted - got)).sum(-1))
            same.append(wanted.argmax(-1) == got.argmax(-1))
        found.append(
            {
                "engine": engine,
                "perplexity": float(np.exp(np.concatenate(losses).mean())),
                "divergence": float(np.concatenate(divergences).mean()),
                "same": float(np.concatenate(same).mean()),
            }
        )
    return found


@click.command(help="Perplexity and divergence from float32 of each backend and precision.")
@click.argument("model", default="smollm2-135m")
@click.option("--engines", default="llama_cpp:float32,llama_cpp:bfloat16,llama_cpp:q8_0,llama_cpp:q4_k,llama_cpp:q4_0")
@click.option("--threads", type=click.IntRange(1), default=lambda: psutil.cpu_count(logical=False) or 1)
@click.option("--window", type=click.IntRange(2), default=256, show_default=True, help="Tokens.")
@click.option("--windows", "count", type=click.IntRange(1), default=8, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures there.")
def main(model: str, engines: str, threads: int, window: int, count: int, json_file: Path | None) -> None:
    """Print what each engine's precision costs, and write it as JSON where asked."""
    with user_errors():
        resolved = resolve.resolve(model)
        tokenizer = Tokenizer.load(resolved.path)
        if tokenizer is None:
            raise click.ClickException(f"{resolved.path} has no tokenizer to read the text with")
        pieces = windows(tokenizer, window, count)
        found = compare(resolved.path, [REFERENCE, *engines.split(",")], pieces, threads)
    drawn = Table(title=f"{resolved.name}, {len(pieces)} windows of {window} tokens", box=None, title_justify="left")
    for name in ("engine", "perplexity", "divergence from float32, nats", "likeliest token the same"):
        drawn.add_column(name, justify="left" if name == "engine" else "right")
    for one in found:
        shares = (f"{one['perplexity']:.2f}", f"{one['divergence']:.4f}", f"{one['same']:.3f}")
        drawn.add_row(one["engine"], *shares)
    Console(width=100).print(drawn)
    if json_file:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
