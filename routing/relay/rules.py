"""Rules: what a router decides; who may be reached through it, who waits for whom, and how much is too much. Pure.

A connection to a router begins with a preamble of `PREAMBLE` bytes, or with ZMTP's first byte where it goes to the
router's own listener. The router answers a preamble that leads somewhere with `JOINED`; what follows is not for it.

    MAGIC  "D"  name of a peer     a dialer: take me to that peer
    MAGIC  "T"  ticket             the peer: join me to the dialer that this ticket stands for
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

MAGIC = b"SWRELAY1"
NAME = 16  # bytes of a peer's name at a router, and of a ticket
PREAMBLE = len(MAGIC) + 1 + NAME
ZMTP = b"\xff"  # https://rfc.zeromq.org/spec/23/: the first byte of every greeting
JOINED = b"\x06"

_ADDRESS = re.compile(r"relay:(\[[0-9A-Fa-f:.%]+\]|[\w.-]+):(\d{1,5})/([0-9a-f]{32})", re.ASCII)


class Way(NamedTuple):
    """A way to a peer: through the router at `host` and `port`, where the peer is called `name`."""

    host: str
    port: int
    name: bytes


def name_of(key: str) -> bytes:
    """What the peer with this public key is called at every router."""
    return hashlib.sha256(key.encode()).digest()[:NAME]


def relay_address(router: str, key: str) -> str:
    """The address of a peer by way of the router at `host:port`."""
    return f"relay:{router}/{name_of(key).hex()}"


def parse_address(address: str) -> Way | None:
    """The way that an address stands for; None: it leads through no router."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        return None
    return Way(match[1].strip("[]"), int(match[2]), bytes.fromhex(match[3]))


def is_relayed(address: str) -> bool:
    return address.startswith("relay:")


class Preamble(NamedTuple):
    """Preamble: what a connection wants. `what` is the name of a peer to dial, or a ticket."""

    kind: Literal["dial", "ticket"]
    what: bytes

    def __bytes__(self) -> bytes:
        return MAGIC + (b"D" if self.kind == "dial" else b"T") + self.what

    @classmethod
    def parse(cls, raw: bytes) -> Preamble | None:
        """None: it is something else."""
        kinds: dict[bytes, Literal["dial", "ticket"]] = {MAGIC + b"D": "dial", MAGIC + b"T": "ticket"}
        kind = kinds.get(raw[:-NAME])
        return cls(kind, raw[-NAME:]) if kind and len(raw) == PREAMBLE else None


@dataclass(frozen=True)
class RelayLimits:
    """Limits of a router.

    Attributes:
        connections: TCP connections in all; a relayed one counts twice, as does a peer's ticket and its dialer.
        per_source: TCP connections of one IP address.
        peers: that may be reached through the router.
        per_peer: dialers that are joined to one peer, or wait for it.
        waiting: dialers that wait for one peer.
        lease: seconds after which a peer that has not registered again is forgotten.
        patience: seconds that a dialer waits for the peer.
    """

    connections: int = 1024
    per_source: int = 256
    peers: int = 1024
    per_peer: int = 128
    waiting: int = 32
    lease: float = 30.0
    patience: float = 5.0


@dataclass
class _Peer:
    key: str
    route: bytes
    until: float


@dataclass(frozen=True)
class PendingCall:
    """A dialer that waits: the peer with this key is to be told of the ticket along `route`."""

    ticket: bytes
    key: str
    route: bytes


class Relay:
    """A router's state. `now` is a clock that never jumps."""

    def __init__(
        self, limits: RelayLimits | None = None, new_ticket: Callable[[], bytes] = lambda: secrets.token_bytes(NAME)
    ) -> None:
        self.limits = limits or RelayLimits()
        self._new_ticket = new_ticket
        self._sources: Counter[str] = Counter()
        self._connections = 0
        self._peers: dict[bytes, _Peer] = {}  # by name
        self._waiting: dict[bytes, tuple[str, float]] = {}  # key and last moment, by ticket
        self._dialers: Counter[str] = Counter()  # by key of the peer that they wait for or are joined to

    # --- connections -------------------------------------------------------------------------------------------------

    def arrive(self, source: str) -> bool:
        """Whether a connection from this IP address is taken; `leave` when it ends, then."""
        if self._connections >= self.limits.connections or self._sources[source] >= self.limits.per_source:
            return False
        self._connections += 1
        self._sources[source] += 1
        return True

    def leave(self, source: str) -> None:
        self._connections -= 1
        _decrease(self._sources, source)

    # --- peers -------------------------------------------------------------------------------------------------------

    def register(self, key: str, route: bytes, now: float) -> bool:
        """The peer with this key can be told of dialers along `route`, for a lease. False: there is no room."""
        name = name_of(key)
        if name not in self._peers and len(self._peers) >= self.limits.peers:
            self._peers = {other: peer for other, peer in self._peers.items() if now < peer.until}
            if len(self._peers) >= self.limits.peers:
                return False
        self._peers[name] = _Peer(key, route, now + self.limits.lease)
        return True

    def forget(self, key: str, route: bytes) -> None:
        """Nothing gets through along `route` any longer. A newer one stays."""
        name = name_of(key)
        if name in self._peers and self._peers[name].route == route:
            del self._peers[name]

    # --- dialers -----------------------------------------------------------------------------------------------------

    def dial(self, name: bytes, now: float) -> PendingCall | None:
        """A dialer wants the peer called `name`; `hung_up` when that ends. None: it is not here, or too many do."""
        peer = self._peers.get(name)
        if peer is None or now >= peer.until:
            return None
        waiting = sum(key == peer.key for key, _ in self._waiting.values())
        if waiting >= self.limits.waiting or self._dialers[peer.key] >= self.limits.per_peer:
            return None
        ticket = self._new_ticket()
        self._waiting[ticket] = peer.key, now + self.limits.patience
        self._dialers[peer.key] += 1
        return PendingCall(ticket, peer.key, peer.route)

    def redeem(self, ticket: bytes, now: float) -> bool:
        """Whether a dialer waits for who shows this ticket, which is good once."""
        _, until = self._waiting.pop(ticket, ("", now))
        return now < until

    def hung_up(self, call: PendingCall) -> None:
        """The dialer of this call is gone, whether it was joined or not."""
        self._waiting.pop(call.ticket, None)
        _decrease(self._dialers, call.key)


def _decrease(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
