"""Upstream's messages, which are protobuf there: msgspec structs of the same names and fields.

They travel between patched peers only, so their bytes need not be those of protobuf. Decoding is typed and runs no
code.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec


class CompressionType(IntEnum):
    """Compression type: how the numbers of a tensor are sent; `patches.codec.serialization` says which of these it can
    do.
    """

    NONE = 0
    MEANSTD_16BIT = 1
    FLOAT16 = 2
    QUANTILE_8BIT = 3
    UNIFORM_8BIT = 4
    BLOCKWISE_8BIT = 5


class Tensor(msgspec.Struct):
    """A tensor, or a part of one: `chunks` parts follow each other, the first one describes the whole."""

    buffer: bytes = b""
    size: list[int] = []
    requires_grad: bool = False
    dtype: str = ""
    compression: int = 0
    chunks: int = 1


class ExpertUID(msgspec.Struct):
    """Expert UID, as hivemind has it."""

    uid: str = ""


class ExpertInfo(msgspec.Struct):
    """Expert info, as hivemind has it."""

    serialized_info: bytes = b""


class ExpertRequest(msgspec.Struct):
    """Expert request, as hivemind has it."""

    uid: str = ""
    tensors: list[Tensor] = []
    metadata: bytes | None = b""


class ExpertResponse(msgspec.Struct):
    """Expert response, as hivemind has it."""

    tensors: list[Tensor] = []
    metadata: bytes | None = b""


class NodeInfo(msgspec.Struct):
    """Node info, as hivemind has it."""

    node_id: bytes = b""


class PingRequest(msgspec.Struct):
    """Ping request, as hivemind has it."""

    peer: NodeInfo | None = None


class PingResponse(msgspec.Struct):
    """Ping response, as hivemind has it."""

    available: bool = False
