"""The whole model in one process, for comparison: as Hugging Face runs it, and as one stage of our own backend."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import psutil

Kind = Literal["huggingface", "stage"]
Generate = Callable[[list[int], int], Iterator[int]]
STOP_TIMEOUT = 15.0  # s


@dataclass(frozen=True)
class TimedGeneration:
    """Tokens of one generation; `times` are seconds from the request to each of them."""

    tokens: list[int]
    times: list[float]

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0]

    @property
    def rate(self) -> float:
        """Tokens per second of decoding: from the first token to the last."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def timed(tokens: Callable[[], Iterator[int]]) -> TimedGeneration:
    """Run a generation and note when each token came."""
    made, times = [], []
    started = time.perf_counter()
    for token in tokens():
        made.append(token)
        times.append(time.perf_counter() - started)
    return TimedGeneration(made, times)


class WholeModel:
    """A process that holds the whole model and generates greedily on request.

    Attributes:
        weights: bytes of its tensors.
        load_time, ready_after: seconds, of loading and since the process was started.
    """

    def __init__(self, kind: Kind, model: Path, dtype: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        started = time.monotonic()
        self._process = context.Process(
            target=_serve, args=(theirs, kind, str(model), dtype, threads), name=kind, daemon=True
        )
        self._process.start()
        theirs.close()
        self.load_time, self.weights = self._connection.recv()
        self.ready_after = time.monotonic() - started
        assert self._process.pid is not None
        self.stats = psutil.Process(self._process.pid)

    def generate(self, ids: list[int], tokens: int) -> TimedGeneration:
        """The greedy continuation of `ids`, with the time of each token."""
        self._connection.send((ids, tokens))
        return TimedGeneration(*self._connection.recv())

    def cpu_seconds(self) -> float:
        """Processor time of this process, in seconds."""
        times = self.stats.cpu_times()
        return times.user + times.system

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(STOP_TIMEOUT)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection, kind: Kind, model: str, dtype: str, threads: int) -> None:
    """Load; tell what `WholeModel` wants to know of it; then answer requests."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    started = time.monotonic()
    generate, weights = {"huggingface": _huggingface, "stage": _stage}[kind](Path(model), dtype, threads)
    connection.send((time.monotonic() - started, weights))
    while True:
        try:
            ids, tokens = connection.recv()
        except EOFError:
            return
        result = timed(lambda ids=ids, tokens=tokens: generate(ids, tokens))  # type: ignore[misc]
        connection.send((result.tokens, result.times))


def _huggingface(model: Path, dtype: str, threads: int) -> tuple[Generate, int]:
    """A plain greedy loop over the model's forward, which is what `generate` does less its bookkeeping."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    net: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def generate(ids: list[int], tokens: int) -> Iterator[int]:
        cache = DynamicCache(config=net.config)
        given = torch.tensor([ids])
        for _ in range(tokens):
            with torch.inference_mode():
                logits = net(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                given = logits[:, -1:].argmax(-1)
            yield int(given[0, 0])

    return generate, sum(tensor.nbytes for tensor in net.parameters())


def _stage(model: Path, dtype: str, threads: int) -> tuple[Generate, int]:
    """The default backend's stage over all blocks, with no server and no messages around it."""
    import numpy as np

    from backends import Batch, Options, Row, Span, registry

    backend = registry.find(registry.DEFAULT)
    blocks = Span(0, backend.describe(model).blocks)
    stage = backend.load(model, blocks, Options(device="cpu", dtype=dtype, threads=threads))

    def generate(ids: list[int], tokens: int) -> Iterator[int]:
        given, position = ids, 0
        for _ in range(tokens):
            batch = Batch(np.array(given, np.int32), [Row("benchmark", position, len(given), 1)], blocks)
            token = int(stage.forward(batch)[-1].argmax())
            position += len(given)
            given = [token]
            yield token
        stage.free("benchmark")

    return generate, stage.memory().weights
