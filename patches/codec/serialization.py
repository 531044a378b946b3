"""Tensors as bytes, whole or in parts."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator
from typing import Any

import msgspec
import torch

from patches.network.messages import CompressionType, Tensor

USE_LEGACY_BFLOAT16 = False  # upstream sets it; bfloat16 is always sent as it is
MAX_CHUNKS = 4096

DTYPES = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Raises: ValueError: tensors of this dtype are not sent."""
    if dtype not in _NAMES:
        raise ValueError(f"tensors of {dtype} are not part of the protocol")
    return _NAMES[dtype]


def serialize_torch_tensor(
    tensor: torch.Tensor, compression_type: int = CompressionType.NONE, info: Any = None, allow_inplace: bool = False
) -> Tensor:
    """The tensor as a message; `FLOAT16` halves floating point numbers of 32 bits.

    Raises:
        ValueError: another compression, or a dtype that is not sent.
    """
    sent = tensor.detach().cpu().contiguous()
    if compression_type == CompressionType.FLOAT16 and sent.is_floating_point():
        largest = torch.finfo(torch.float16).max
        sent = sent.clamp(-largest, largest).to(torch.float16)
    elif compression_type not in (CompressionType.NONE, CompressionType.FLOAT16):
        raise ValueError(
            f"the compression {CompressionType(compression_type).name} is not provided; take NONE or FLOAT16"
        )
    return Tensor(
        buffer=sent.reshape(-1).view(torch.uint8).numpy().tobytes() if sent.numel() else b"",
        size=list(tensor.shape),
        requires_grad=tensor.requires_grad,
        dtype=dtype_name(tensor.dtype),
        compression=int(compression_type),
    )


def deserialize_torch_tensor(message: Tensor) -> torch.Tensor:
    """Raises: ValueError: the message does not hold what it says."""
    if message.dtype not in DTYPES:
        raise ValueError(f"a tensor of unknown dtype {message.dtype!r}")
    dtype = DTYPES[message.dtype]
    halved = message.compression == CompressionType.FLOAT16 and dtype.is_floating_point
    if message.compression not in (CompressionType.NONE, CompressionType.FLOAT16):
        raise ValueError(f"a tensor of unknown compression {message.compression}")
    raw = bytearray(message.buffer)
    sent = torch.frombuffer(raw, dtype=torch.float16 if halved else dtype) if raw else torch.empty(0, dtype=dtype)
    try:
        tensor = sent.to(dtype).reshape(message.size)
    except RuntimeError as error:
        raise ValueError(f"{len(raw)} bytes for a tensor of shape {message.size}") from error
    return tensor.requires_grad_(message.requires_grad)


def split_for_streaming(message: Tensor, chunk_size_bytes: int) -> Iterator[Tensor]:
    """The same tensor in parts of at most so many bytes."""
    starts = range(0, max(len(message.buffer), 1), chunk_size_bytes)
    for start in starts:
        part = message.buffer[start : start + chunk_size_bytes]
        if start == 0:
            yield msgspec.structs.replace(message, buffer=part, chunks=len(starts))
        else:
            yield Tensor(buffer=part)


async def deserialize_tensor_stream(stream: AsyncIterable[Iterable[Tensor]]) -> list[torch.Tensor]:
    """All tensors of a stream of parts.

    Raises:
        ValueError: it ends in the middle of one.
    """
    tensors: list[torch.Tensor] = []
    parts: list[Tensor] = []
    async for messages in stream:
        for message in messages:
            parts.append(message)
            if not 1 <= parts[0].chunks <= MAX_CHUNKS:
                raise ValueError(f"a tensor in {parts[0].chunks} parts; at most {MAX_CHUNKS} are taken")
            if len(parts) == parts[0].chunks:
                whole = b"".join(part.buffer for part in parts)
                tensors.append(deserialize_torch_tensor(msgspec.structs.replace(parts[0], buffer=whole)))
                parts = []
    if parts:
        raise ValueError("the stream ended in the middle of a tensor")
    return tensors
