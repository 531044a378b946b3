"""Loading: from a model's folder to a stage that is loaded and measured."""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from backends import Batch, ModelInfo, Options, Row, Span, Stage, registry
from routing import wire
from routing.planning.assign import capacity
from swarm.errors import SwarmError
from swarm.system import home, progress

log = logging.getLogger(__name__)

KV_SHARE = 0.3  # of the free memory, for the KV cache where --kv-tokens does not say
KV_LEAST, KV_MOST = 2048, 262_144  # tokens
RESERVE = 1 << 30  # bytes left to the rest of the machine when the server chooses its own span


class StageOptions(Protocol):
    """Stage options: what the user wants of a stage; see `swarm-server --help`."""

    @property
    def backend(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def quantize(self) -> str | None: ...
    @property
    def kv_tokens(self) -> int | None: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def kv_dtype(self) -> str: ...


def capacity_of(info: ModelInfo, wishes: StageOptions, model: str) -> int:
    """The number of the model's blocks that fit into the free memory of the device that the backend would use.

    Raises:
        SwarmError: not even one, or that device does not say what it has free.
        BackendError: there is no such device.
    """
    free = registry.find(wishes.backend).free_memory(options_of(wishes))
    if free is None:
        raise SwarmError(
            f"the free memory of --device {wishes.device} is unknown to the backend {wishes.backend}, so the number of "
            f"blocks of {model} that fit is unknown too: name them with --blocks START:END"
        )
    blocks = capacity(
        free,
        max(info.block_bytes),
        sum(info.edge_bytes),
        info.kv_bytes_per_token,
        wishes.kv_tokens or KV_LEAST,
        RESERVE,
    )
    if blocks < 1:
        raise SwarmError(
            f"there is not enough free memory for one block of {model}: close other programs, use --quantize, "
            f"or name the blocks with --blocks to try it all the same"
        )
    return blocks


def described(server: wire.ServerInfo, stage: Stage, kv_tokens: int | None) -> wire.ServerInfo:
    """The server as it is with this stage, ready. Measures its speed."""
    memory = stage.memory()
    room = kv_tokens or stage.kv_tokens or _default_kv_tokens(stage)
    return msgspec.structs.replace(
        server,
        state="ready",
        device=stage.device,
        dtype=stage.dtype,
        throughput=_measure(stage),
        kv_tokens=room,
        load=wire.ServerLoad(kv_free=room, memory_used=memory.weights),
        quantize=stage.precision or server.quantize,
        memory=memory.weights + (memory.free or 0),
    )


def options_of(wishes: StageOptions) -> Options:
    """What a backend is told of them."""
    return Options(
        device=wishes.device,
        dtype=wishes.dtype,
        quantize=wishes.quantize,
        threads=wishes.threads,
        kv_dtype=wishes.kv_dtype,
        kv_tokens=wishes.kv_tokens,
        cache=home.folder("spans"),
    )


def backend_of(wishes: StageOptions, model: Path) -> str:
    """The backend's name; for `auto` the fastest one here that computes as was asked.

    Raises:
        BackendError: none does.
    """
    if wishes.backend != registry.AUTO:
        return wishes.backend
    name, reasons = registry.fastest(model, options_of(wishes))
    others = "; ".join(f"not {other}: {reason}" for other, reason in reasons.items())
    log.info("--backend auto: %s%s", name, f" ({others})" if others else ", the fastest")
    return name


def load(wishes: StageOptions, folder: Path, span: Span) -> Stage:
    """Raises: BackendError: the backend cannot serve that."""
    backend = registry.find(wishes.backend)
    started = time.monotonic()
    with progress.show_progress() as show:
        told = replace(options_of(wishes), progress=lambda done, total: show(f"loading blocks {span}", done, total))
        stage = backend.load(folder, span, told)
    log.info("loaded blocks %s in %.1f s", span, time.monotonic() - started)
    return stage


def _default_kv_tokens(stage: Stage) -> int:
    free = stage.memory().free
    if free is None:
        log.warning(
            "the free memory of %s is unknown: there is room for %d tokens; ask for another number with --kv-tokens",
            stage.device,
            KV_LEAST,
        )
        return KV_LEAST
    fitting = int(free * KV_SHARE) // max(stage.kv_bytes_per_token, 1)
    return min(max(fitting, KV_LEAST), KV_MOST)


def _measure(stage: Stage, steps: int = 6) -> float:
    """Blocks times tokens per second of single decode steps, the median of a few."""
    width = () if stage.span.start == 0 else (stage.model.hidden_size,)
    inputs = np.zeros((1, *width), np.int32 if stage.span.start == 0 else np.float32)
    seconds = []
    for position in range(steps):
        started = time.perf_counter()
        stage.forward(Batch(inputs, [Row("throughput", position, 1, 1)], stage.span))
        seconds.append(time.perf_counter() - started)
    stage.free("throughput")
    return (stage.span.end - stage.span.start) / statistics.median(seconds)
