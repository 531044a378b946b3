"""Petals stage: a span of blocks, loaded into upstream's own backends."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from petals.server.backend import TransformerBackend, merge_inference_pools_inplace
from petals.server.from_pretrained import load_pretrained_block
from petals.server.memory_cache import MemoryCache
from petals.utils.convert_block import QuantType, convert_block
from petals.utils.misc import DUMMY_INT64

from backends import batch_checks
from backends.stage import Array, BackendError, Batch, Memory, Options, Row, Span
from backends.torch_net import device  # knows torch, and no transformers
from backends.upstream import info
from backends.upstream.cache import PetalsKVSession
from backends.upstream.edges import PetalsHead, PetalsTail
from backends.upstream.info import PetalsModel
from patches.codec.tensors import BatchTensorDescriptor

MAX_CHUNK = 256 << 20  # bytes of attention scores at a time; upstream's own default
_QUANTIZE = {"int8": QuantType.INT8, "nf4": QuantType.NF4}


def load(path: Path, span: Span, options: Options) -> PetalsStage:
    """Load the blocks of `span`, with what is needed before the first block and after the last.

    Raises:
        BackendError: as `backends.stage.Backend.load`.
    """
    target = device.resolve_device(options.device)
    quantize = _quantize(options.quantize, target)
    if options.kv_dtype != "auto":
        raise BackendError(f"--kv-dtype {options.kv_dtype}: upstream Petals keeps keys and values in its --dtype")
    if options.threads is not None:
        if options.threads < 1:
            raise BackendError(f"--threads {options.threads}: at least one thread is needed")
        torch.set_num_threads(options.threads)
    model = info.read(path)
    if not 0 <= span.start < span.end <= model.info.blocks:
        raise BackendError(f"blocks {span} of {path}: take START:END inside 0:{model.info.blocks}")
    dtype = device.resolve_dtype(options.dtype, model.info.dtype, target)
    memory = MemoryCache(None)
    backends: dict[str, TransformerBackend] = {}
    edges = (model.head if span.start == 0 else ()) + (model.tail if span.end == model.info.blocks else ())
    total = sum(model.info.block_bytes[span.start : span.end]) + model.nbytes(edges)
    done = 0
    try:
        for block in range(span.start, span.end):
            backend = _backend(model, block, memory, target, dtype, quantize)
            backends[backend.name] = backend
            done += model.info.block_bytes[block]
            if options.progress:
                options.progress(done, total)
        merge_inference_pools_inplace(backends)
        stage = PetalsStage(model, span, target, dtype, backends, memory)
    except Exception as error:
        if device.out_of_memory(error):
            raise BackendError(
                f"{target} has no room for blocks {span} of {path} in {device.dtype_name(dtype)}; "
                "take fewer blocks, a smaller --dtype or --quantize"
            ) from error
        if isinstance(error, AssertionError):
            raise BackendError(f"{path}: upstream Petals cannot load it: {error}") from error
        raise
    if options.progress:
        options.progress(total, total)
    return stage


def _quantize(name: str | None, target: torch.device) -> QuantType:
    if name is None:
        return QuantType.NONE
    if name not in _QUANTIZE:
        raise BackendError(f"--quantize {name}: upstream Petals knows {' and '.join(_QUANTIZE)}")
    if target.type != "cuda":
        raise BackendError(f"--quantize {name} needs a CUDA device with this backend; leave it out on {target}")
    if find_spec("bitsandbytes") is None:
        raise BackendError(f"--quantize {name} needs more packages here: pip install bitsandbytes==0.41.1")
    return _QUANTIZE[name]


def _backend(
    model: PetalsModel, block: int, memory: MemoryCache, target: torch.device, dtype: torch.dtype, quantize: QuantType
) -> TransformerBackend:
    # The folder is for a lock around upstream's cache of downloads, of which a local model needs nothing.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="for .*: copying from a non-meta parameter")
        module = load_pretrained_block(
            str(model.folder.path), block, config=model.config, torch_dtype=dtype, cache_dir=folder
        )
    module = convert_block(module, block, model.config, (target,), target, quantize, freeze=True)
    schema = (BatchTensorDescriptor(1, 2048, model.info.hidden_size, dtype=dtype),)
    return TransformerBackend(
        f"span.{block}",
        module.eval(),
        config=model.config,
        memory_cache=memory,
        backend_dtype=dtype,
        max_chunk_size_bytes=MAX_CHUNK,
        args_schema=schema,
        kwargs_schema={},
        outputs_schema=schema,
        max_batch_size=1 << 30,
    )


class PetalsStage:
    """Petals stage: runs a span; see `backends.stage.Stage`. One session at a time, as upstream does."""

    batched = False
    precision, kv_tokens = "", 0

    def __init__(
        self,
        model: PetalsModel,
        span: Span,
        target: torch.device,
        dtype: torch.dtype,
        backends: Mapping[str, TransformerBackend],
        memory: MemoryCache,
    ) -> None:
        self.model, self.span = model.info, span
        self.device, self.dtype = str(target), device.dtype_name(dtype)
        self._device, self._dtype = target, dtype
        self._backends = list(backends.values())
        self._memory = memory
        self._head = PetalsHead(model, target, dtype) if span.start == 0 else None
        self._tail = PetalsTail(model, target, dtype) if span.end == model.info.blocks else None
        self._sessions: dict[str, PetalsKVSession] = {}
        self.kv_bytes_per_token = sum(sum(b.cache_bytes_per_token.values()) for b in self._backends)
        modules: list[Any] = [b.module for b in self._backends] + [m for m in (self._head, self._tail) if m is not None]
        self._weights = sum({p.data_ptr(): p.nbytes for m in modules for p in m.parameters()}.values())

    def forward(self, batch: Batch) -> Array:
        """See `backends.stage.Stage.forward`."""
        span = Span(*batch.span)
        row = self._only_row(batch)
        known = self._sessions.get(row.session)
        session = known or PetalsKVSession(span, self._slice(span), self._memory)
        try:
            with torch.inference_mode():
                session.reserve(row.position + row.length)
                array = device.to_numpy(self._run(batch, row, span, session))
        except BaseException as error:
            if known is None:
                session.close()
            if device.out_of_memory(error):
                raise MemoryError(
                    f"{self.device} has no room for {row.length} more tokens; end some sessions or shorten the prompt"
                ) from error
            raise
        session.length += row.length
        self._sessions[row.session] = session
        return array

    def _run(self, batch: Batch, row: Row, span: Span, session: PetalsKVSession) -> torch.Tensor:
        if span.start == 0:
            assert self._head is not None
            hidden = self._head(device.to_torch(batch.inputs, self._device, torch.int64))
        else:
            hidden = device.to_torch(batch.inputs, self._device, self._dtype)
        blocks = session.metadata()
        compute = self._slice(span)[0].inference_pool.process_func  # that of all blocks, since pools were merged
        out: torch.Tensor
        (out,) = compute(hidden[None], DUMMY_INT64, blocks, *[None] * len(blocks))
        if span.end < self.model.blocks:
            return out[0]
        assert self._tail is not None
        final = self._tail.norm(out[0, row.length - row.outputs :])
        return final if batch.output == "hidden" else self._tail.logits(final).float()

    def _slice(self, span: Span) -> list[TransformerBackend]:
        return self._backends[span.start - self.span.start : span.end - self.span.start]

    def _only_row(self, batch: Batch) -> Row:
        """The batch's row. Raises: BackendError: this stage cannot run the batch."""
        if len(batch.rows) != 1:
            raise BackendError(f"a batch of {len(batch.rows)} rows; this backend runs one session at a time")
        batch_checks.require(batch, self.span, self.model, self._sessions.get)
        return batch.rows[0]

    def truncate(self, session: str, length: int) -> None:
        """See `backends.stage.Stage.truncate`; what lies beyond `length` is overwritten."""
        if length < 0:
            raise BackendError(f"session {session} cannot be truncated to {length} tokens")
        known = self._sessions.get(session)
        if known is not None:
            known.length = min(known.length, length)

    def free(self, session: str) -> None:
        """See `backends.stage.Stage.free`."""
        known = self._sessions.pop(session, None)
        if known is not None:
            known.close()

    def memory(self) -> Memory:
        """See `backends.stage.Stage.memory`."""
        return Memory(self._weights, self._memory.current_size_bytes, max(0, device.free_memory(self._device)))
