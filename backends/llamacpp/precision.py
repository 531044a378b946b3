"""Precision: the type that each tensor of a span gets, and the way there.

`--quantize q4_0` and its like follow llama.cpp's own choice for models of that name (`src/llama-quant.cpp`): matrices
of blocks in that type, the head one step finer, vectors in float32. The numbers are llama.cpp's as well
(`ggml_quantize_chunk`).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from backends.llamacpp.library import Library
from backends.llamacpp.source import EMBEDDING, HEAD, SourceTensor, Type, WeightSource
from backends.stage import Array, BackendError

PLAIN = {"float32": Type.F32, "bfloat16": Type.BF16, "float16": Type.F16}
QUANTISED = {
    name: GGMLQuantizationType[name.upper()] for name in ("q8_0", "q6_k", "q5_k", "q4_k", "q5_0", "q4_1", "q4_0")
}
# What takes the place of a type whose blocks of 256 numbers do not fit into a row.
_SMALLER_BLOCKS = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}
_NUMPY = {Type.F32: np.float32, Type.F16: np.float16, Type.BF16: ml_dtypes.bfloat16}
_PIECE = 1 << 24  # numbers that are converted at once


def wanted(source: WeightSource, dtype: str, quantize: str | None) -> Type | None:
    """What the options ask for; None: everything as it is stored.

    Raises:
        BackendError: no such type, or one that would take what is quantised already.
    """
    if dtype not in ("auto", *PLAIN):
        raise BackendError(f"there is no dtype {dtype!r}; take auto, {', '.join(PLAIN)}")
    if quantize is not None and quantize not in QUANTISED:
        raise BackendError(f"there is no quantisation {quantize!r} in llama.cpp; take {', '.join(QUANTISED)}")
    if quantize is None and dtype in ("auto", source.dtype):
        return None
    if source.dtype not in PLAIN:
        if quantize is None or quantize == source.dtype:
            return None  # a dtype is then that of the hidden states alone
        raise BackendError(f"{source.path} is quantised already ({source.dtype}); leave --quantize {quantize} out")
    return QUANTISED[quantize] if quantize else PLAIN[dtype]


def type_of(tensor: SourceTensor, source: WeightSource, wanted: Type | None) -> Type:
    """The type that a tensor gets."""
    if wanted is None:
        return tensor.type if tensor.type not in PLAIN.values() or _is_matrix(tensor) else Type.F32
    if not _is_matrix(tensor):
        return Type.F32
    if wanted in PLAIN.values():
        return wanted
    head = tensor.name == HEAD or (tensor.name == EMBEDDING and source.tied)
    kind = Type.Q6_K if head and wanted != Type.Q8_0 else wanted
    width = tensor.shape[-1]
    if width % GGML_QUANT_SIZES[kind][0]:
        kind = _SMALLER_BLOCKS.get(kind, kind)
    return kind if width % GGML_QUANT_SIZES[kind][0] == 0 else Type.F16


def _is_matrix(tensor: SourceTensor) -> bool:
    return len(tensor.shape) > 1 and not tensor.name.endswith(("norm.weight", "ffn_gate_inp.weight"))


def nbytes(shape: tuple[int, ...], kind: Type) -> int:
    """Bytes of a tensor of this type."""
    numbers, size = map(int, GGML_QUANT_SIZES[kind])
    return math.prod(shape) // numbers * size


def data(tensor: SourceTensor, kind: Type, library: Library, workers: ThreadPoolExecutor) -> Iterator[Array]:
    """The tensor's bytes as `kind`, piece by piece; what is stored so already is handed on as it is mapped."""
    for part in tensor.parts():
        if kind == tensor.type and (kind not in _NUMPY or part.dtype == _NUMPY[kind]):
            yield part
            continue
        rows = part.reshape(-1, part.shape[-1]) if part.ndim > 1 else part[None]
        step = max(1, _PIECE // rows.shape[1])
        if kind in _NUMPY:
            yield from (rows[at : at + step].astype(_NUMPY[kind]) for at in range(0, len(rows), step))
            continue
        for at in range(0, len(rows), step):
            yield _quantised(rows[at : at + step].astype(np.float32), kind, library, workers)


def _quantised(rows: Array, kind: Type, library: Library, workers: ThreadPoolExecutor) -> Array:
    numbers, size = GGML_QUANT_SIZES[kind]
    out = np.empty((len(rows), rows.shape[1] // numbers * size), np.uint8)
    each = max(1, -(-len(rows) // workers._max_workers))

    def run(start: int) -> None:
        some = rows[start : start + each]
        library.ggml_quantize_chunk(
            int(kind),
            some.ctypes.data_as(ctypes.c_void_p),
            out[start:].ctypes.data_as(ctypes.c_void_p),
            0,
            len(some),
            rows.shape[1],
            None,
        )

    list(workers.map(run, range(0, len(rows), each)))
    return out
