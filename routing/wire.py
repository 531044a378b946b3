"""The messages of the swarm and how they lie in ZeroMQ frames.

A message is one header frame, then the frames of at most one tensor:

    header   1 byte protocol version, then msgpack: [[tag, fields...], null | [dtype, shape]]
    tensor   the array's bytes in C order, little-endian, cut into frames of `CHUNK` bytes

Those of directories are in `routing.directory_messages`. msgspec refuses unknown tags, missing fields and wrong types,
and never runs code from a message (no pickle). Every limit below is enforced by the receiver. `docs/protocol.md` says
who sends what to whom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from routing.codes import FailureCode, RefusalCode
from routing.directory_messages import (
    Announce,
    AnnounceRouter,
    Change,
    Consult,
    DirectoryInfo,
    DirectoryListed,
    Done,
    Enrol,
    Event,
    Expel,
    Expulsion,
    Issue,
    Member,
    MemberExpelled,
    MemberJoined,
    PeerGone,
    Place,
    Placed,
    Revoke,
    RosterPart,
    RouterInfo,
    RouterUpdated,
    ServerInfo,
    ServerLoad,
    ServerUpdated,
    Snapshot,
    TokenRecord,
    Watch,
    Withdraw,
)
from routing.fields import (
    Address,
    Addresses,
    Amount,
    Count,
    Date,
    Key,
    Message,
    Name,
    Positive,
    Request,
    Seconds,
    SessionId,
    Text,
)
from routing.petals_messages import Abandon, Call, Reply

# What is defined elsewhere and used under this name.
__all__ = [
    "Abandon", "Address", "Addresses", "Amount", "Announce", "AnnounceRouter", "Call", "Change", "Consult", "Count",
    "Date", "DirectoryInfo", "DirectoryListed", "Done", "Enrol", "Event", "Expel", "Expulsion", "FailureCode",
    "Issue", "Key", "Member", "MemberExpelled", "MemberJoined", "Message", "Name", "PeerGone", "Place", "Placed",
    "Positive", "RefusalCode", "Reply", "Request", "Revoke", "RosterPart", "RouterInfo", "RouterUpdated", "Seconds",
    "ServerInfo", "ServerLoad", "ServerUpdated", "SessionId", "Snapshot", "Text", "TokenRecord", "Watch", "Withdraw",
]  # fmt: skip


VERSION = 5
CHUNK = 1 << 20  # bytes; libzmq encrypts a frame at a time, so small frames bound its copies
MAX_FRAME = 4 << 20  # bytes; ZMQ_MAXMSGSIZE of every socket
MAX_TENSOR = 256 << 20  # bytes
MAX_HOPS = 256
MAX_GRAMMAR = 1 << 16  # characters

Array = npt.NDArray[Any]

_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{name: np.dtype(name).newbyteorder("<") for name in ("float16", "float32", "int32", "int64", "uint8")},
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class WireError(Exception):
    """Frames that are no message of this protocol. The connection is fine, the message is dropped."""


# --- sessions: client and hops -----------------------------------------------------------------------------------


class Hop(msgspec.Struct, array_like=True, frozen=True):
    """One server of a route and the blocks `start:end` that it computes for the session."""

    peer: Key
    addresses: Addresses
    start: Count
    end: Positive


class Sampling(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Sampling: how the tail picks a token. The defaults are greedy; `swarm.sampling` says what each does."""

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_k: Count = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-100, le=100)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-100, le=100)] = 0.0
    logit_bias: Annotated[dict[Count, Annotated[float, Meta(ge=-1000, le=1000)]], Meta(max_length=4096)] = {}
    stop_ids: Annotated[tuple[Count, ...], Meta(max_length=4096)] = ()
    logprobs: Annotated[int, Meta(ge=-1, le=100)] = -1
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR)] = ""


class Generation(msgspec.Struct, array_like=True, frozen=True):
    """Generation: what makes a hop the one that closes the ring.

    Attributes:
        prompt_length: tokens of the sequence that the user gave; penalties on generated text start there.
        end: position at which generation ends: the sequence never gets longer than this.
        history: the sequence so far, when the sampling looks back at it (penalties, a grammar); else empty.
    """

    prompt_length: Count
    end: Positive
    sampling: Sampling
    history: tuple[Count, ...] = ()


class Open(Message, frozen=True):
    """Client to each hop: take part in a session, or go on with it under a newer epoch.

    A hop that knows the session keeps its KV cache up to `position` and forgets the rest. Without `generation` at the
    tail the session is driven step by step.
    """

    session: SessionId
    epoch: Count
    model: Name
    route: Annotated[tuple[Hop, ...], Meta(min_length=1, max_length=MAX_HOPS)]
    hop: Count
    max_length: Positive
    position: Count
    generation: Generation | None = None


class Opened(Message, frozen=True):
    """Hop to client: ready for the epoch.

    Attributes:
        position: length of the KV cache that the hop has kept, at most the one asked for.
        held: from this position up to `position` the hop still has the outputs that it once pushed, and can push them
            again; equal to `position` where it has none.
    """

    session: SessionId
    epoch: Count
    position: Count
    held: Count = 0


class Refused(Message, frozen=True):
    """The answer to a session or a request that is not taken.

    Attributes:
        code: one of `RefusalCode`.
        retry_after: a hint; None: do not try again here.
    """

    code: Name
    reason: Text
    session: Annotated[str, Meta(max_length=32)] = ""
    epoch: Count = 0
    request: Request = 0
    retry_after: Seconds | None = None


class Forward(Message, frozen=True):
    """Compute: token ids `[tokens]` int32 for the head, hidden states `[tokens, hidden]` for other hops.

    Sent by the client (to the head), by each hop to the next, and by the tail to the head (the token it has picked).

    Attributes:
        position: of the first token.
        outputs: for how many of the last tokens the tail owes an output; more may follow in later messages.
        output: what a session that is driven step by step gets for them.
        starts: where every hop of the route is to start, the first of them at `position`: each forgets what lies beyond
            its own start, and pushes what the next hop wants from the start of that one on, out of the outputs that it
            has kept. Travels along the ring with the first message, so every hop sees it in order. Empty: go on.
        last: no further part of this step follows.
    """

    session: SessionId
    epoch: Count
    position: Count
    outputs: Count = 0
    output: Literal["logits", "hidden"] = "logits"
    starts: Annotated[tuple[Count, ...], Meta(max_length=MAX_HOPS)] = ()
    last: bool = True


class Credit(Message, frozen=True):
    """Hop to the hop before it: so many bytes of activations have been taken in, more may follow."""

    size: Amount


class Token(Message, frozen=True):
    """Tail to client: the token picked for `position`. `top` holds the likeliest ids with their log-probabilities."""

    session: SessionId
    epoch: Count
    position: Count
    token: Count
    finish: Literal["", "stop", "length"] = ""
    logprob: float | None = None
    top: tuple[tuple[Count, float], ...] = ()


class Result(Message, frozen=True):
    """Tail to client: logits or hidden states `[outputs, ...]` of a step, from `position` on."""

    session: SessionId
    epoch: Count
    position: Count
    last: bool = True


class Failed(Message, frozen=True):
    """Hop to client: the session cannot go on here. `peer` is the hop at fault where it is not the sender."""

    session: SessionId
    epoch: Count
    code: FailureCode
    reason: Text
    peer: Annotated[str, Meta(max_length=40)] = ""


class Leaving(Message, frozen=True):
    """Hop to client: I am about to leave. The session goes on here for a while; move it to another server."""

    session: SessionId
    epoch: Count


class Probe(Message, frozen=True):
    """Client to hop: nothing has come for a while; are you there, and how far have you got?"""

    session: SessionId
    epoch: Count


class Alive(Message, frozen=True):
    """Hop to client, from the thread that computes: tokens of the session that were taken in, and computed."""

    session: SessionId
    epoch: Count
    accepted: Count
    computed: Count


class Close(Message, frozen=True):
    """Client to hop: the session has ended; free its KV cache."""

    session: SessionId


class Ping(Message, frozen=True):
    """Peer to peer: answer with a `Pong`."""

    request: Request


class Pong(Message, frozen=True):
    """The answer to a `Ping`; from a server also unasked, to find out whether the client is there."""

    request: Request


class ListFiles(Message, frozen=True):
    """Client to server: which small files of the model (tokenizer, configuration, chat template) can you send?"""

    request: Request
    model: Name


class Files(Message, frozen=True):
    """Server to client: sizes of the files that it can send, by name."""

    request: Request
    files: Annotated[dict[Name, Amount], Meta(max_length=64)]


class ReadFile(Message, frozen=True):
    """Client to server: send a part of this file."""

    request: Request
    model: Name
    name: Name
    offset: Amount


class FilePart(Message, frozen=True):
    """Bytes of a file from `offset` on, as a uint8 tensor."""

    request: Request
    offset: Amount


# --- routers -----------------------------------------------------------------------------------------------------


class Register(Message, frozen=True):
    """Peer to router: tell me, along this connection, of peers that want to reach me. Repeated as long as it holds."""

    request: Request


class Caller(Message, frozen=True):
    """Router to peer: a peer wants to reach you; the first connection that shows this ticket is joined to theirs."""

    ticket: Annotated[bytes, Meta(min_length=16, max_length=16)]


AnyMessage = (
    Open | Opened | Refused | Forward | Credit | Token | Result | Failed | Leaving | Probe | Alive | Close | Ping | Pong
    | ListFiles | Files | ReadFile | FilePart
    | Enrol | Announce | AnnounceRouter | Withdraw | Place | Placed | Done | Watch | Snapshot | Change
    | Consult | RosterPart | Issue | Revoke | Expel
    | Register | Caller
    | Call | Reply | Abandon
)  # fmt: skip


class _Header(msgspec.Struct, array_like=True, frozen=True):
    message: AnyMessage
    tensor: tuple[Name, Annotated[tuple[Amount, ...], Meta(max_length=8)]] | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Header)


def encode(message: Message, array: Array | None = None) -> list[bytes | memoryview]:
    """Frames of a message and its tensor.

    Raises:
        WireError: the array's dtype cannot be sent, or it is over `MAX_TENSOR` bytes.
    """
    if array is None:
        return [bytes((VERSION,)) + _encoder.encode(_Header(message))]  # type: ignore[arg-type]
    name = _DTYPE_NAMES.get(array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype)
    if name is None:
        raise WireError(f"arrays of {array.dtype} are not part of the protocol")
    if array.nbytes > MAX_TENSOR:
        raise WireError(f"a tensor of {array.nbytes} bytes is over the limit of {MAX_TENSOR}")
    header = _Header(message, (name, array.shape))  # type: ignore[arg-type]
    data = np.ascontiguousarray(array, _DTYPES[name]).view(np.uint8).reshape(-1).data
    chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    return [bytes((VERSION,)) + _encoder.encode(header), *chunks]


def decode(frames: Sequence[bytes | memoryview]) -> tuple[AnyMessage, Array | None]:
    """The message and the tensor in `frames`. The array shares the memory of a single tensor frame and is read-only.

    Raises:
        WireError: the frames are no message of this version, or break a limit.
    """
    if not frames or len(frames[0]) < 2:
        raise WireError("an empty header")
    head = memoryview(frames[0])
    if head[0] != VERSION:
        raise WireError(f"protocol version {head[0]}, this peer speaks {VERSION}: update the older one")
    try:
        header = _decoder.decode(head[1:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a malformed header: {error}") from error
    return header.message, _tensor(header, frames[1:])


def _tensor(header: _Header, chunks: Sequence[bytes | memoryview]) -> Array | None:
    if header.tensor is None:
        if chunks:
            raise WireError("tensor frames that no header announces")
        return None
    name, shape = header.tensor
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise WireError(f"a tensor of unknown dtype {name!r}")
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_TENSOR or sum(map(len, chunks)) != size:
        raise WireError(f"{sum(map(len, chunks))} bytes for a tensor of {size}; at most {MAX_TENSOR} are taken")
    data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    try:
        array = np.frombuffer(data, np.uint8).view(dtype).reshape(shape)
    except ValueError as error:  # an empty array may still have a dimension that no array can have
        raise WireError(f"a tensor of shape {shape}: {error}") from error
    array.flags.writeable = False
    return array
