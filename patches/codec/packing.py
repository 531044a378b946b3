"""`MSGPackSerializer`: upstream's metadata as msgpack, with tuples and tensor descriptors kept apart."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from patches.codec.serialization import DTYPES, dtype_name
from patches.codec.tensors import BatchTensorDescriptor, TensorDescriptor

_TUPLE, _DESCRIPTOR = 1, 2
_Fields = tuple[list[int | None], str, bool, int]  # size, dtype, requires_grad, compression


class MSGPackSerializer:
    """Raises: TypeError, ValueError: what cannot be packed, or unpacked."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        return msgspec.msgpack.encode(_wrapped(value))

    @staticmethod
    def loads(data: bytes) -> Any:
        return msgspec.msgpack.decode(data, ext_hook=_unwrapped)


def _wrapped(value: Any) -> Any:
    if isinstance(value, TensorDescriptor):
        size = value.size[1:] if isinstance(value, BatchTensorDescriptor) else value.size
        dtype = dtype_name(value.dtype) if value.dtype is not None else ""
        fields: _Fields = (list(size), dtype, value.requires_grad, int(value.compression))
        kind = isinstance(value, BatchTensorDescriptor)
        return msgspec.msgpack.Ext(_DESCRIPTOR, msgspec.msgpack.encode((kind, fields)))
    if isinstance(value, tuple):
        return msgspec.msgpack.Ext(_TUPLE, msgspec.msgpack.encode([_wrapped(item) for item in value]))
    if isinstance(value, list):
        return [_wrapped(item) for item in value]
    if isinstance(value, dict):
        return {key: _wrapped(item) for key, item in value.items()}
    return value


def _unwrapped(code: int, data: memoryview) -> Any:
    if code == _TUPLE:
        return tuple(msgspec.msgpack.decode(data, ext_hook=_unwrapped))
    if code == _DESCRIPTOR:
        batch, (size, name, grad, compression) = msgspec.msgpack.decode(data, type=tuple[bool, _Fields])
        dtype = DTYPES[name] if name else torch.float32
        kind = BatchTensorDescriptor if batch else TensorDescriptor
        return kind(tuple(size), dtype=dtype, requires_grad=grad, compression=compression)
    raise ValueError(f"a value of unknown kind {code}")
