"""The messages of the swarm and how they lie in ZeroMQ frames.

A message is one header frame, then the frames of at most one tensor:

    header   1 byte protocol version, then msgpack: [[tag, fields...], null | [dtype, shape]]
    tensor   the array's bytes in C order, little-endian, cut into frames of `CHUNK` bytes

msgspec refuses unknown tags, missing fields and wrong types, and never runs code from a message (no pickle). Every
limit below is enforced by the receiver. `docs/protocol.md` says who sends what to whom.
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

VERSION = 2
CHUNK = 1 << 20  # bytes; libzmq encrypts a frame at a time, so small frames bound its copies
MAX_FRAME = 4 << 20  # bytes; ZMQ_MAXMSGSIZE of every socket
MAX_TENSOR = 256 << 20  # bytes
MAX_HOPS = 256

Array = npt.NDArray[Any]
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

_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{name: np.dtype(name).newbyteorder("<") for name in ("float16", "float32", "int32", "int64", "uint8")},
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class WireError(Exception):
    """Frames that are no message of this protocol. The connection is fine, the message is dropped."""


class Message(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Base of every message."""


# --- sessions: client and hops -----------------------------------------------------------------------------------


class Hop(msgspec.Struct, array_like=True, frozen=True):
    """One server of a route and the blocks `start:end` that it computes for the session."""

    peer: Key
    addresses: Addresses
    start: Count
    end: Positive


class Sampling(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """How the tail picks a token. The defaults are greedy; `swarm.sampling` says what each does."""

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


class Generation(msgspec.Struct, array_like=True, frozen=True):
    """What makes a hop the one that closes the ring.

    Attributes:
        prompt_length: tokens of the sequence that the user gave; penalties on generated text start there.
        end: position at which generation ends: the sequence never gets longer than this.
        history: the sequence so far, when the sampling looks back at it (penalties); else empty.
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
    """The answer to a session or a request that is not taken. `retry_after` is a hint; None: do not try again here."""

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
    code: Literal["bad_input", "compute", "evicted", "gap", "leaving", "lost_hop", "memory"]
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
    request: Request


class Pong(Message, frozen=True):
    request: Request


class ListFiles(Message, frozen=True):
    """Client to server: which small files of the model (tokenizer, configuration, chat template) can you send?"""

    request: Request
    model: Name


class Files(Message, frozen=True):
    request: Request
    files: Annotated[dict[Name, Amount], Meta(max_length=64)]


class ReadFile(Message, frozen=True):
    request: Request
    model: Name
    name: Name
    offset: Amount


class FilePart(Message, frozen=True):
    """Bytes of a file from `offset` on, as a uint8 tensor."""

    request: Request
    offset: Amount


# --- the directory -----------------------------------------------------------------------------------------------


class Server(msgspec.Struct, array_like=True, frozen=True):
    """What the directory knows of a server.

    Attributes:
        addresses: `host:port` at which other peers reach it, the most local first; then those through a router.
        model: the model's name in the swarm.
        blocks: number of blocks of the whole model.
        throughput: blocks times tokens that it computes per second, by its own measurement.
        kv_tokens, kv_free: capacity of its KV cache, and what no session has reserved, in tokens.
        memory, memory_used: bytes on its device.
        fingerprint: file name to short digest; two servers of one model must not disagree on any.
        state: only `ready` servers are put in routes.
        instance: differs each time the server is started, so that a failure of the last time is not held against it.
        movable: it chose its span by itself, and may move to where the swarm is thinner.
        revision: grows with everything that the server says, so that of two directories' records the later is known.
    """

    key: Key
    name: Name
    addresses: Addresses
    model: Name
    blocks: Positive
    start: Count
    end: Positive
    hidden_size: Positive
    context_length: Count
    backend: Name
    device: Name
    dtype: Name
    quantize: Name = ""
    state: Literal["joining", "ready", "draining"] = "joining"
    throughput: Annotated[float, Meta(ge=0)] = 0.0
    kv_tokens: Amount = 0
    kv_free: Amount = 0
    sessions: Count = 0
    memory: Amount = 0
    memory_used: Amount = 0
    fingerprint: Annotated[dict[Name, Name], Meta(max_length=4096)] = {}
    version: Name = ""
    instance: Name = ""
    movable: bool = False
    revision: Amount = 0


class Router(msgspec.Struct, array_like=True, frozen=True):
    """What the directory knows of a router: `addresses` are `host:port`, the best first."""

    key: Key
    name: Name
    addresses: Addresses


class Member(msgspec.Struct, array_like=True, frozen=True):
    """A peer that has enrolled: only its key may connect to anybody in the swarm.

    Attributes:
        role: what it said it is: `server`, `client`, `gateway`.
        token: the id of the join token that it came with (see `routing.roster.short_id`).
    """

    key: Key
    name: Name
    enrolled: Date
    role: Name = ""
    token: Name = ""


class Site(msgspec.Struct, array_like=True, frozen=True):
    """A directory of the swarm and where it is. `updated`: when it said so itself; the later record holds."""

    key: Key
    name: Name
    addresses: Addresses
    updated: Date
    token: Name = ""


class Enrolment(msgspec.Struct, array_like=True, frozen=True):
    """A join token as directories know it: the public half of its secret, and what it is good for.

    Attributes:
        expires: None: never.
        uses: how many peers may enrol with it; 0: any number.
        revoked: when it was; None: it was not.
        role: `directory`: whoever holds it may become a directory, which all others trust.
    """

    key: Key
    created: Date
    expires: Date | None = None
    uses: Count = 0
    revoked: Date | None = None
    role: Literal["peer", "directory"] = "peer"


class Expulsion(msgspec.Struct, array_like=True, frozen=True):
    """`key` shall not come back. It outlives the member, and wins over every record of it."""

    key: Key
    date: Date
    name: Name = ""
    role: Name = ""
    token: Name = ""


class Enrol(Message, frozen=True):
    """Sent under the key pair of a join token, which may do nothing else: let `key` into the swarm.

    A directory that wants to become one of the swarm's says so in `role` and tells its `addresses`.
    """

    request: Request
    key: Key
    name: Name
    role: Name = ""
    addresses: Annotated[tuple[Address, ...], Meta(max_length=16)] = ()


class Announce(Message, frozen=True):
    """Server to directory: here I am, for `ttl` seconds from now."""

    request: Request
    server: Server
    ttl: Seconds


class AnnounceRouter(Message, frozen=True):
    """Router to directory: here I am, for `ttl` seconds from now."""

    request: Request
    router: Router
    ttl: Seconds


class Withdraw(Message, frozen=True):
    """Server or router to directory: I leave."""

    request: Request


class Place(Message, frozen=True):
    """Server to directory: which span of at most `capacity` blocks shall I serve? The answer holds it for `ttl`.

    `server` carries the model, its number of blocks and its fingerprint; its span is ignored.
    """

    request: Request
    server: Server
    capacity: Positive
    ttl: Seconds


class Placed(Message, frozen=True):
    request: Request
    start: Count
    end: Positive


class Done(Message, frozen=True):
    """The request was carried out."""

    request: Request


class Watch(Message, frozen=True):
    """Peer to directory: send the whole state, then every change."""

    request: Request


class Snapshot(Message, frozen=True):
    """Directory to watcher: a part of the state as of change `sequence`; `Done` follows the last part."""

    request: Request
    sequence: Amount
    members: tuple[Member, ...]
    servers: tuple[Server, ...]
    expelled: tuple[Key, ...] = ()
    directories: tuple[Site, ...] = ()
    routers: tuple[Router, ...] = ()


class Joined(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A member was enrolled."""

    member: Member


class Expelled(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A member lost its place."""

    key: Key


class Updated(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A server came, or says something new of itself."""

    server: Server


class RouterUpdated(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A router came, or can be reached elsewhere."""

    router: Router


class Gone(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A server or a router left, or its lease ran out."""

    key: Key
    reason: Text


class Listed(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A directory of the swarm came, or can be reached elsewhere."""

    site: Site


Event = Joined | Expelled | Updated | RouterUpdated | Gone | Listed


class Change(Message, frozen=True):
    """Directory to watchers. A gap in `sequence` means that one was missed: watch again."""

    sequence: Amount
    event: Event


# --- directories among themselves, and whoever administers them --------------------------------------------------


class Consult(Message, frozen=True):
    """Directory or administrator to directory: what do you know that `digest` is not the digest of?

    Answered by `Roster`s and `Done`; with the same digest by `Done` alone. After it the asking directory is told of
    changes by `Roster`s with the same number.

    Attributes:
        site: the asking directory's own.
    """

    request: Request
    digest: Annotated[bytes, Meta(max_length=32)] = b""
    site: Site | None = None


class Roster(Message, frozen=True):
    """A part of what directories exchange (see `routing.roster`).

    Attributes:
        seen: key to the date of the last sign of life; for administrators only.
    """

    request: Request
    expelled: tuple[Expulsion, ...] = ()
    enrolments: tuple[Enrolment, ...] = ()
    sites: tuple[Site, ...] = ()
    members: tuple[Member, ...] = ()
    seen: dict[Key, Date] = {}


class Issue(Message, frozen=True):
    """Administrator to directory: from now on this join token is good. Its secret stays with the administrator."""

    request: Request
    key: Key
    ttl: Seconds | None = None
    uses: Count = 0
    role: Literal["peer", "directory"] = "peer"


class Revoke(Message, frozen=True):
    """Administrator to directory: this join token enrols nobody any longer."""

    request: Request
    key: Key


class Expel(Message, frozen=True):
    """Administrator to directory: this peer, or directory, is in the swarm no longer."""

    request: Request
    key: Key


# --- routers -----------------------------------------------------------------------------------------------------


class Register(Message, frozen=True):
    """Peer to router: tell me, along this connection, of whoever wants to reach me. Repeated as long as it holds."""

    request: Request


class Caller(Message, frozen=True):
    """Router to peer: somebody wants to reach you; the first connection that shows this ticket is joined to theirs."""

    ticket: Annotated[bytes, Meta(min_length=16, max_length=16)]


AnyMessage = (
    Open | Opened | Refused | Forward | Credit | Token | Result | Failed | Leaving | Probe | Alive | Close | Ping | Pong
    | ListFiles | Files | ReadFile | FilePart
    | Enrol | Announce | AnnounceRouter | Withdraw | Place | Placed | Done | Watch | Snapshot | Change
    | Consult | Roster | Issue | Revoke | Expel
    | Register | Caller
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
