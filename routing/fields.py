"""Fields: what the fields of messages may hold. Every limit is enforced by the receiver."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]
Key = Annotated[str, Meta(min_length=40, max_length=40)]  # a CURVE public key in Z85
SessionId = Annotated[str, Meta(min_length=32, max_length=32)]
Count = Annotated[int, Meta(ge=0, lt=1 << 31)]
Positive = Annotated[int, Meta(ge=1, lt=1 << 31)]
Amount = Annotated[int, Meta(ge=0, lt=1 << 62)]  # bytes
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Date = Annotated[float, Meta(ge=0, le=1e12)]  # seconds since the epoch
Address = Annotated[str, Meta(max_length=256)]
Addresses = Annotated[tuple[Address, ...], Meta(min_length=1, max_length=16)]
Request = Count  # number of a request; its answer carries the same one


class Message(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Base of every message."""
