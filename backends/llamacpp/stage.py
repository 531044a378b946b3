"""llama.cpp stage: a span of blocks, cut out of a model and run by llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import psutil

from backends import batch_checks, huge_pages
from backends.artifact_cache import ArtifactEntry
from backends.llamacpp import cut, precision
from backends.llamacpp.architectures import architecture
from backends.llamacpp.engine import BATCH, OUTPUTS, SEQUENCES, LlamaEngine, LlamaModel, chunks
from backends.llamacpp.library import Library, library
from backends.llamacpp.resolve import read
from backends.llamacpp.source import WeightSource
from backends.stage import Array, BackendError, Batch, Memory, ModelInfo, Options, Row, Span

KV_SHARE = 0.3  # of the free memory, for the KV cache where --kv-tokens does not say
KV_LEAST, KV_MOST = 2048, 32_768  # tokens
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_KV = {"auto": "", "float32": "float32", "float16": "float16", "q8_0": "q8_0"}
_KV_BYTES = {"float32": 4.0, "float16": 2.0, "q8_0": 34 / 32}
_DEVICES = {"cuda": "CUDA", "vulkan": "Vulkan", "rocm": "ROCm", "metal": "MTL", "mps": "MTL", "sycl": "SYCL"}


def load(path: Path, span: Span, options: Options) -> LlamaStage:
    """Cut the blocks of `span` out of the model, unless that was done before, and load them.

    Raises:
        BackendError: as `backends.stage.Backend.load`.
    """
    lib = library()
    source = read(path)
    if not 0 <= span.start < span.end <= source.blocks:
        raise BackendError(f"blocks {span} of {path}: take START:END inside 0:{source.blocks}")
    if options.threads is not None and options.threads < 1:
        raise BackendError(f"--threads {options.threads}: at least one thread is needed")
    wanted = precision.wanted(source, options.dtype, options.quantize)
    kv = kv_type(options.kv_dtype, source, options)
    device, handle = find_device(lib, options.device)
    threads = options.threads or psutil.cpu_count(logical=False) or 1
    progress = options.progress or (lambda done, total: None)
    made = cut.cut(source, span, wanted, options.cache, lib, threads, progress)
    count = span.end - span.start + cut.has_block_behind(source, span)
    model = LlamaModel(lib, str(made.file), [] if handle is None else [handle], count + (span.end == source.blocks))
    stage = LlamaStage(source, span, model, made.plan.weights, device, handle, threads, kv, options)
    stage.entry = made.entry
    if handle is None:
        huge_pages.enlarge()
    return stage


def held(source: WeightSource, options: Options) -> ModelInfo:
    """What is known of the model, with the sizes that it has when it is loaded with these options.

    Raises:
        BackendError: an option that llama.cpp does not have.
    """
    wanted = precision.wanted(source, options.dtype, options.quantize)
    kv = _KV_BYTES[kv_type(options.kv_dtype, source, options)]
    info = source.info(lambda tensor: precision.nbytes(tensor.shape, precision.type_of(tensor, source, wanted)))
    return replace(info, kv_bytes_per_token=int(source.kv_elements * kv))


def kv_type(name: str, source: WeightSource, options: Options) -> str:
    """What keys and values are kept as: by default float16, or float32 where the whole span computes in it.

    Raises:
        BackendError: no such type, or one whose blocks of 32 do not fit.
    """
    if name not in _KV:
        raise BackendError(f"there is no --kv-dtype {name!r} in llama.cpp; take {', '.join(_KV)}")
    exact = options.quantize is None and (options.dtype if options.dtype != "auto" else source.dtype) == "float32"
    kind = _KV[name] or ("float32" if exact else "float16")
    if kind == "q8_0" and (source.kv_elements // int(source.number("attention.head_count_kv")) // 2) % 32:
        raise BackendError("--kv-dtype q8_0 needs heads whose width is a multiple of 32; leave it out")
    return kind


def find_device(lib: Library, name: str) -> tuple[str, int | None]:
    """The name and handle of a GPU of this build of llama.cpp; no handle: the CPU.

    Raises:
        BackendError: it has no such device.
    """
    gpus = lib.devices()
    if name == "cpu" or (name == "auto" and not gpus):
        return "cpu", None
    if name == "auto":
        chosen = next(iter(gpus))
        return chosen.lower(), gpus[chosen]
    kind, _, number = name.partition(":")
    chosen = f"{_DEVICES.get(kind, kind)}{number or 0}"
    if chosen not in gpus:
        there = ", ".join(gpus) or "CPUs only"
        raise BackendError(f"there is no device {name!r} in this build of llama.cpp ({there}); take --device cpu")
    return chosen.lower(), gpus[chosen]


@dataclass
class LlamaKVSession:
    """A sequence of the engine that runs this sub-range."""

    span: Span
    engine: LlamaEngine
    sequence: int
    length: int = 0


class LlamaStage:
    """Llama stage: runs a span; see `backends.stage.Stage`.

    A sub-range runs the whole span's graph, with the hidden states put in and taken out in its midst by the callback.
    That wastes what lies outside, and needs no more memory than a KV cache of its own.
    """

    batched = True

    def __init__(
        self,
        source: WeightSource,
        span: Span,
        model: LlamaModel,
        weights: int,
        device: str,
        handle: int | None,
        threads: int,
        kv: str,
        options: Options,
    ) -> None:
        self.model, self.span, self.device = source.info(), span, device
        self.dtype = options.dtype if options.dtype != "auto" else "float32"
        self.precision = options.quantize or (
            options.dtype if source.dtype in _DTYPES and options.dtype != "auto" else source.dtype
        )
        self.entry: ArtifactEntry | None = None  # held: its file is mapped
        self._loaded, self._handle, self._threads, self._kv = model, handle, threads, kv
        self._rules = architecture(source.architecture, source.blocks)
        self._scale = math.sqrt(source.hidden_size) if self._rules.scaled and span.start > 0 else 1.0
        self._weights = weights
        self.kv_bytes_per_token = int((span.end - span.start) * source.kv_elements * _KV_BYTES[kv])
        self.kv_tokens = -(-(options.kv_tokens or self._default_tokens()) // 256) * 256
        tail = span.end == source.blocks
        self._vocabulary = source.vocab_size if tail else 0
        marked = self._rules.marks and model.library.gives_layer_inputs
        self._main = self._engine(marked or tail)
        self._parts: LlamaEngine | None = None if marked or tail else self._main
        self._sessions: dict[str, LlamaKVSession] = {}
        self._free = {id(self._main): list(range(SEQUENCES))}

    def _default_tokens(self) -> int:
        fitting = int((self.memory().free or 0) * KV_SHARE) // max(self.kv_bytes_per_token, 1)
        wanted = min(max(self.model.context_length, KV_MOST // 2), KV_MOST)
        return max(KV_LEAST, min(fitting, wanted))

    def _engine(self, marked: bool) -> LlamaEngine:
        tail = self.span.end == self.model.blocks
        return LlamaEngine(
            self._loaded,
            width=self.model.hidden_size,
            vocabulary=self._vocabulary,
            layer=None if tail else self.span.end - self.span.start,
            marked=marked,
            tokens=self.kv_tokens,
            threads=self._threads,
            kv=self._kv,
            offload=self._handle is not None,
        )

    def forward(self, batch: Batch) -> Array:
        """See `backends.stage.Stage.forward`."""
        span = Span(*batch.span)
        batch_checks.require(batch, self.span, self.model, self._sessions.get)
        engine = self._main if span == self.span else self._for_parts()
        sessions = self._assign_sequences(batch.rows, span, engine)
        tail = span.end == self.model.blocks
        if engine is self._parts:
            engine.enter = span.start - self.span.start if span.start > self.span.start else None
            engine.leave = None if tail else span.end - self.span.start
        try:
            out = self._run(engine, batch, sessions, tail)
        except BaseException as error:
            for row, session in zip(batch.rows, sessions, strict=True):
                engine.forget(session.sequence, row.position)
                if row.session not in self._sessions:
                    self._free[id(engine)].append(session.sequence)
            if isinstance(error, MemoryError):
                raise MemoryError(f"{self.device}: {error}; end some sessions, or give it more --kv-tokens") from error
            raise
        for row, session in zip(batch.rows, sessions, strict=True):
            session.length += row.length
            self._sessions[row.session] = session
        return out if tail and batch.output == "logits" else out.astype(_DTYPES[self.dtype], copy=False)

    def _run(self, engine: LlamaEngine, batch: Batch, sessions: Sequence[LlamaKVSession], tail: bool) -> Array:
        inputs = batch.inputs
        if inputs.ndim == 2:
            inputs = inputs.astype(np.float32, copy=False)
            if self._scale != 1.0 and engine.enter is None:
                inputs = inputs / np.float32(self._scale)
        hidden = tail and batch.output == "hidden"
        if len(batch.rows) == 1 and batch.rows[0].length <= OUTPUTS:
            row = batch.rows[0]
            positions = np.arange(row.position, row.position + row.length, dtype=np.int32)
            wanted = (np.arange(row.length) >= row.length - row.outputs) & tail
            return engine.run(inputs, positions, np.int32(sessions[0].sequence), wanted, hidden)
        lengths = [row.length for row in batch.rows]
        outputs = [row.outputs * tail for row in batch.rows]
        positions = np.concatenate([np.arange(r.position, r.position + r.length, dtype=np.int32) for r in batch.rows])
        ids = np.repeat(np.array([session.sequence for session in sessions], np.int32), lengths)
        wanted = np.concatenate([np.arange(n) >= n - o for n, o in zip(lengths, outputs, strict=True)])
        cuts = chunks(lengths, outputs, OUTPUTS if hidden else BATCH)
        parts = [engine.run(inputs[a:b], positions[a:b], ids[a:b], wanted[a:b], hidden) for a, b in cuts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _assign_sequences(self, rows: Sequence[Row], span: Span, engine: LlamaEngine) -> list[LlamaKVSession]:
        """The session of each row; new ones get a sequence."""
        free = self._free[id(engine)]
        if sum(row.session not in self._sessions for row in rows) > len(free):
            raise MemoryError(f"{self.device} keeps {SEQUENCES} sessions apart and has as many; end some")
        return [self._sessions.get(row.session) or LlamaKVSession(span, engine, free.pop()) for row in rows]

    def _for_parts(self) -> LlamaEngine:
        if self._parts is None:
            self._parts = self._engine(marked=False)
            self._free[id(self._parts)] = list(range(SEQUENCES))
        return self._parts

    def truncate(self, session: str, length: int) -> None:
        """See `backends.stage.Stage.truncate`."""
        if length < 0:
            raise BackendError(f"session {session} cannot be truncated to {length} tokens")
        known = self._sessions.get(session)
        if known is None or length >= known.length:
            return
        if not known.engine.forget(known.sequence, length):
            raise BackendError(f"session {session} keeps a running state, which cannot go back; free it and replay it")
        known.length = length

    def free(self, session: str) -> None:
        """See `backends.stage.Stage.free`."""
        known = self._sessions.pop(session, None)
        if known is not None:
            known.engine.forget(known.sequence, 0)
            self._free[id(known.engine)].append(known.sequence)

    def memory(self) -> Memory:
        """See `backends.stage.Stage.memory`; `kv` is what the sessions fill of the room that is held for them."""
        used = sum(session.length for session in getattr(self, "_sessions", {}).values()) * self.kv_bytes_per_token
        return Memory(self._weights, used, self._loaded.library.free_memory(self._handle))
