"""The messages of a call: one peer runs a named method of another, with a stream of parts in either direction.

They carry what upstream Petals sends over libp2p (see `patches`); our own servers and clients use none of them. A part
is opaque bytes, as a uint8 tensor. A call that fails is answered with `wire.Refused`.
"""

from __future__ import annotations

from routing.fields import Message, Name, Request


class Call(Message, frozen=True):
    """Caller to callee: a part of what the method is given. Only the first one names the `method`.

    Attributes:
        last: no further part follows. A message without a tensor carries no part.
    """

    request: Request
    method: Name = ""
    last: bool = True


class Reply(Message, frozen=True):
    """Callee to caller: a part of the result."""

    request: Request
    last: bool = True


class Abandon(Message, frozen=True):
    """Caller to callee: no caller waits for the result any longer."""

    request: Request
