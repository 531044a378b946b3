"""The messages of directories: what they keep, what peers tell and ask them, what they tell each other. They travel
like all others, see `routing.wire`, under whose name they are used.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from routing.fields import Address, Addresses, Amount, Count, Date, Key, Message, Name, Positive, Request, Seconds, Text


class ServerLoad(msgspec.Struct, array_like=True, frozen=True):
    """Load of a server: the figures that change while it serves.

    Attributes:
        kv_free: tokens of its KV cache that no session has reserved.
        memory_used: bytes on its device.
    """

    kv_free: Amount = 0
    sessions: Count = 0
    memory_used: Amount = 0


class ServerInfo(msgspec.Struct, array_like=True, frozen=True):
    """Server info: what the directory knows of a server.

    Attributes:
        addresses: `host:port` at which other peers reach it, the most local first; then those through a router.
        model: the model's name in the swarm.
        blocks: number of blocks of the whole model.
        throughput: blocks times tokens that it computes per second, by its own measurement.
        kv_tokens: capacity of its KV cache.
        memory: bytes on its device, those that it uses and those that are free.
        protocol: `ring`: it takes part in sessions; `petals`: it answers the calls of upstream Petals, nothing else.
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
    load: ServerLoad = ServerLoad()
    memory: Amount = 0
    fingerprint: Annotated[dict[Name, Name], Meta(max_length=4096)] = {}
    version: Name = ""
    instance: Name = ""
    movable: bool = False
    protocol: Literal["ring", "petals"] = "ring"
    revision: Amount = 0


class RouterInfo(msgspec.Struct, array_like=True, frozen=True):
    """Router info: what the directory knows of a router; `addresses` are `host:port`, the best first."""

    key: Key
    name: Name
    addresses: Addresses


class Member(msgspec.Struct, array_like=True, frozen=True):
    """A peer that has enrolled: only its key may connect to others in the swarm.

    Attributes:
        role: what it said it is: `server`, `client`, `gateway`.
        token: the id of the join token that it came with (see `routing.directory.roster.short_id`).
    """

    key: Key
    name: Name
    enrolled: Date
    role: Name = ""
    token: Name = ""


class DirectoryInfo(msgspec.Struct, array_like=True, frozen=True):
    """A directory of the swarm and where it is. `updated`: when it said so itself; the later record holds."""

    key: Key
    name: Name
    addresses: Addresses
    updated: Date
    token: Name = ""


class TokenRecord(msgspec.Struct, array_like=True, frozen=True):
    """A join token as directories know it: the public half of its secret, and what it is good for.

    Attributes:
        expires: None: never.
        uses: how many peers may enrol with it; 0: any number.
        revoked: when it was; None: it was not.
        role: `directory`: its holder may become a directory, which all others trust.
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
    server: ServerInfo
    ttl: Seconds


class AnnounceRouter(Message, frozen=True):
    """Router to directory: here I am, for `ttl` seconds from now."""

    request: Request
    router: RouterInfo
    ttl: Seconds


class Withdraw(Message, frozen=True):
    """Server or router to directory: I leave."""

    request: Request


class Place(Message, frozen=True):
    """Server to directory: which span of at most `capacity` blocks shall I serve? The answer holds it for `ttl`.

    `server` carries the model, its number of blocks and its fingerprint; its span is ignored.
    """

    request: Request
    server: ServerInfo
    capacity: Positive
    ttl: Seconds


class Placed(Message, frozen=True):
    """Directory to server: the span that it shall serve."""

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
    servers: tuple[ServerInfo, ...]
    expelled: tuple[Key, ...] = ()
    directories: tuple[DirectoryInfo, ...] = ()
    routers: tuple[RouterInfo, ...] = ()


class MemberJoined(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A member was enrolled."""

    member: Member


class MemberExpelled(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A member lost its place."""

    key: Key


class ServerUpdated(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A server came, or says something new of itself."""

    server: ServerInfo


class RouterUpdated(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A router came, or can be reached elsewhere."""

    router: RouterInfo


class PeerGone(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A server or a router left, or its lease ran out."""

    key: Key
    reason: Text


class DirectoryListed(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A directory of the swarm came, or can be reached elsewhere."""

    site: DirectoryInfo


Event = MemberJoined | MemberExpelled | ServerUpdated | RouterUpdated | PeerGone | DirectoryListed


class Change(Message, frozen=True):
    """Directory to watchers. A gap in `sequence` means that one was missed: watch again."""

    sequence: Amount
    event: Event


# --- directories among themselves, and their administrators --------------------------------------------------


class Consult(Message, frozen=True):
    """Directory or administrator to directory: what do you know that `digest` is not the digest of?

    Answered by `RosterPart`s and `Done`; with the same digest by `Done` alone. After it the asking directory is told of
    changes by `RosterPart`s with the same number.

    Attributes:
        site: the asking directory's own.
    """

    request: Request
    digest: Annotated[bytes, Meta(max_length=32)] = b""
    site: DirectoryInfo | None = None


class RosterPart(Message, frozen=True):
    """A part of what directories exchange (see `routing.directory.roster`).

    Attributes:
        seen: key to the date of the last sign of life; for administrators only.
    """

    request: Request
    expelled: tuple[Expulsion, ...] = ()
    enrolments: tuple[TokenRecord, ...] = ()
    sites: tuple[DirectoryInfo, ...] = ()
    members: tuple[Member, ...] = ()
    seen: dict[Key, Date] = msgspec.field(default_factory=dict)


class Issue(Message, frozen=True):
    """Administrator to directory: from now on this join token is good. Its secret stays with the administrator."""

    request: Request
    key: Key
    ttl: Seconds | None = None
    uses: Count = 0
    role: Literal["peer", "directory"] = "peer"


class Revoke(Message, frozen=True):
    """Administrator to directory: this join token enrols no peer any longer."""

    request: Request
    key: Key


class Expel(Message, frozen=True):
    """Administrator to directory: this peer, or directory, is in the swarm no longer."""

    request: Request
    key: Key
