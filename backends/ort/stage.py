"""ONNX stage: a span of blocks, compiled and run by ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil

from backends import batch_checks, huge_pages
from backends.artifact_cache import ArtifactEntry
from backends.checkpoint import files
from backends.ort import devices, families, graphs
from backends.ort.compiled import Compiler, growth
from backends.ort.devices import Device
from backends.ort.edges import FamilyEmbedding, OnnxEmbedding, OnnxTail
from backends.ort.engine import OrtEngine
from backends.ort.kv_cache import Slot
from backends.stage import Array, BackendError, Batch, Memory, ModelInfo, Options, Span
from backends.torch_net import info as models
from backends.torch_net import net as family

QUANTISED = ("int8", "int4")
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def describe(path: Path) -> ModelInfo:
    """As `backends.stage.Backend.describe`."""
    info = models.describe(path)
    families.require(info.architecture, _config(path), path)
    return info


def held(info: ModelInfo, options: Options) -> ModelInfo:
    """The same with the sizes that it has when it is loaded with these options.

    Raises:
        BackendError: an option that this backend does not have.
    """
    device = devices.find(options.device)
    precision = _precision(options, device)
    head, tail = info.edge_bytes  # the embedding stays in the model's file
    tail_precision = "int8" if precision == "int4" else precision
    return replace(
        info,
        block_bytes=tuple(int(size * growth(info.dtype, precision)) for size in info.block_bytes),
        edge_bytes=(head, int(tail * growth(info.dtype, tail_precision))),
        kv_bytes_per_token=int(info.kv_bytes_per_token * growth(info.dtype, device.dtype)),
    )


def _config(path: Path) -> Any:
    return family.text_config(files.read(path))


def refusal(path: Path, options: Options) -> str | None:
    """As `backends.stage.Backend.refusal`."""
    try:
        info = describe(path)
        device = devices.find(options.device)
        precision = _precision(options, device)
        config = _config(path)
        families.require_use(info.architecture, config, device, options.quantize)
    except BackendError as error:
        return str(error)
    if options.quantize is None and not families.is_built(info.architecture, config):
        return "its blocks would be exported by torch, and whether they are faster so is not known"
    if options.device == "auto" and device.name == "cpu" and shutil.which("nvidia-smi"):
        return "this ONNX Runtime computes on the cpu only"
    if precision == "float32" and info.dtype in ("bfloat16", "float16"):
        return f"it computes in float32 on the CPU, which takes twice the memory of what is stored ({info.dtype})"
    return None


def _precision(options: Options, device: Device) -> str:
    """What the weights are kept in.

    Raises:
        BackendError: an option that this backend does not have.
    """
    if options.quantize is not None and options.quantize not in QUANTISED:
        raise BackendError(f"--quantize {options.quantize}: the onnx backend has {' and '.join(QUANTISED)}")
    if options.dtype not in ("auto", *_DTYPES):
        raise BackendError(f"there is no dtype {options.dtype!r}; take auto, {', '.join(_DTYPES)}")
    if options.kv_dtype not in ("auto", device.dtype):
        raise BackendError(f"--kv-dtype {options.kv_dtype}: on {device} keys and values are kept in {device.dtype}")
    if options.quantize == "int8" and device.name == "tensorrt_rtx":
        raise BackendError("--quantize int8 does not go with TensorRT-RTX; take int4, or leave it out")
    return options.quantize or device.dtype


def load(path: Path, span: Span, options: Options) -> OnnxStage:
    """Compile what of the span is not compiled yet, and start it.

    Raises:
        BackendError: as `backends.stage.Backend.load`.
    """
    device = devices.find(options.device)
    precision = _precision(options, device)
    if options.threads is not None and options.threads < 1:
        raise BackendError(f"--threads {options.threads}: at least one thread is needed")
    info = describe(path)
    if not 0 <= span.start < span.end <= info.blocks:
        raise BackendError(f"blocks {span} of {path}: take START:END inside 0:{info.blocks}")
    folder, net, anatomy, plan = models.examine(path)
    families.require_use(info.architecture, net.config, device, options.quantize)
    compiler = Compiler(folder, net, anatomy, plan, info, device, precision, options.cache)
    progress = options.progress or (lambda done, total: None)
    embedding = info.edge_bytes[0] if span.start == 0 else 0
    compiled = compiler.span(span, lambda done, total: progress(done, total + embedding))
    threads = options.threads or psutil.cpu_count(logical=False) or 1
    data = compiler.folder  # the compiler itself would keep the buffers of all blocks

    def engine(part: Span) -> OrtEngine:
        graph = graphs.joined(compiled[part.start - span.start : part.end - span.start])
        return OrtEngine(graph, data, part, device, threads)

    stage = OnnxStage(info, span, device, precision, options.dtype, engine)
    stage.entry = compiler.entry
    if span.start == 0:
        built = families.is_built(net.architecture, net.config)
        stage.embedding = OnnxEmbedding(path) if built else FamilyEmbedding(path)
        read = embedding + sum(info.block_bytes[: span.end]) + info.edge_bytes[1] * (span.end == info.blocks)
        progress(read, read)
    if span.end == info.blocks:
        stage.tail = OnnxTail(compiled[-1], device, threads)
    stage.weights = sum(graphs.nbytes(file) for file in compiled)
    if device.name == "cpu":
        huge_pages.enlarge()
    return stage


@dataclass(frozen=True, slots=True)
class OnnxKVSession:
    """A session's slot in the engine that runs this sub-range."""

    engine: OrtEngine
    slot: Slot

    @property
    def span(self) -> Span:
        return self.engine.span

    @property
    def length(self) -> int:
        return self.slot.length


class OnnxStage:
    """Onnx stage: runs a span; see `backends.stage.Stage`.

    A sub-range is joined anew from the compiled blocks when it is first asked for, and then takes the memory of its
    blocks once more.
    """

    batched = True
    kv_tokens = 0

    def __init__(
        self,
        info: ModelInfo,
        span: Span,
        device: Device,
        precision: str,
        dtype: str,
        engine: Callable[[Span], OrtEngine],
    ) -> None:
        self.model, self.span, self.device = info, span, str(device)
        self.dtype = device.dtype if dtype == "auto" else dtype
        self.precision = precision
        self.entry: ArtifactEntry | None = None  # held: its files are mapped, and joined anew
        self.embedding: OnnxEmbedding | FamilyEmbedding | None = None
        self.tail: OnnxTail | None = None
        self.weights = 0
        self._device, self._make = device, engine
        self._engines = {span: engine(span)}
        self.kv_bytes_per_token = self._engines[span].pool.token_bytes
        self._sessions: dict[str, OnnxKVSession] = {}

    def forward(self, batch: Batch) -> Array:
        """See `backends.stage.Stage.forward`."""
        span = Span(*batch.span)
        batch_checks.require(batch, self.span, self.model, self._sessions.get)
        if span not in self._engines:
            self._engines[span] = self._make(span)
        engine = self._engines[span]
        new: dict[str, Slot] = {}
        try:
            for row in batch.rows:
                if row.session not in self._sessions:
                    new[row.session] = engine.pool.acquire(row.length)
            slots = [new.get(row.session) or self._sessions[row.session].slot for row in batch.rows]
            hidden = batch.inputs
            if span.start == 0:
                assert self.embedding is not None
                positions = [np.arange(row.position, row.position + row.length) for row in batch.rows]
                hidden = self.embedding(hidden, np.concatenate(positions))
            pieces = [(slot, row.length) for slot, row in zip(slots, batch.rows, strict=True)]
            out = self._finish(engine.run(hidden, pieces), batch)
        except BaseException as error:
            for slot in new.values():
                engine.pool.release(slot)
            if isinstance(error, MemoryError):
                raise MemoryError(f"{self.device}: {error}; end some sessions or shorten the prompt") from error
            raise
        for slot, row in zip(slots, batch.rows, strict=True):
            slot.length += row.length
            self._sessions[row.session] = OnnxKVSession(engine, slot)
        return out

    def _finish(self, hidden: Array, batch: Batch) -> Array:
        if batch.span[1] == self.model.blocks:
            assert self.tail is not None
            ends = np.cumsum([row.length for row in batch.rows])
            wanted = [np.arange(end - row.outputs, end) for row, end in zip(batch.rows, ends, strict=True)]
            hidden = self.tail(hidden[np.concatenate(wanted)], batch.output)
            if batch.output == "logits":
                return hidden
        return hidden.astype(_DTYPES[self.dtype], copy=False)

    def truncate(self, session: str, length: int) -> None:
        """See `backends.stage.Stage.truncate`; what lies beyond `length` is overwritten."""
        if length < 0:
            raise BackendError(f"session {session} cannot be truncated to {length} tokens")
        known = self._sessions.get(session)
        if known is not None:
            known.slot.length = min(known.length, length)

    def free(self, session: str) -> None:
        """See `backends.stage.Stage.free`."""
        known = self._sessions.pop(session, None)
        if known is not None:
            known.engine.pool.release(known.slot)

    def memory(self) -> Memory:
        """See `backends.stage.Stage.memory`."""
        kv = sum(engine.pool.nbytes() for engine in self._engines.values())
        return Memory(self.weights, kv, devices.free_memory(self._device))
