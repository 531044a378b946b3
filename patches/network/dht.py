"""Upstream's DHT: what it stores there about blocks is what the directory knows about servers.

A server stores, under the id of each of its blocks, what it is. Here that is one announcement. A client looks up the
ids of all blocks and gets the servers of each.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from patches.concurrency.loops import LoopThread
from patches.network.messages import NodeInfo, PingRequest, PingResponse
from patches.network.node import Node, Parts
from patches.network.p2p import P2P, PeerID
from patches.network.records import DHTValue
from routing import wire
from routing.addresses import reachable
from routing.client import DirectoryClient
from routing.links import split_address
from routing.relay.agent import RelayAgent
from routing.security import TOKEN_PREFIX, Identity, JoinToken

_JOINING, _ONLINE = 1, 2
_STATES = {_JOINING: "joining", _ONLINE: "ready"}
_BLOCK = re.compile(r"(?P<prefix>.+)\.(?P<block>\d+)")


class DHT:
    """In place of hivemind's: joins the swarm of a join token.

    Args:
        initial_peers: a join token may stand among them; else it is taken from `SWARM_JOIN`. All else is ignored.
        client_mode: this peer cannot be called.
        host_maddrs: the first `/ip4/HOST/tcp/PORT` tells where to listen.
        announce_maddrs: where others are to dial this peer.
        identity_path: file of its key; without one it is a new peer each time.

    Raises:
        ValueError: there is no join token.
        routing.errors.DirectoryError, routing.security.SecurityError, routing.links.LinkError: it cannot join.
    """

    def __init__(
        self,
        initial_peers: Iterable[Any] = (),
        *,
        start: bool = False,
        client_mode: bool = False,
        num_workers: int | None = None,
        host_maddrs: Sequence[str] = (),
        announce_maddrs: Sequence[str] | None = None,
        identity_path: str | None = None,
        **ignored: Any,
    ) -> None:
        token = JoinToken.parse(join_token(map(str, initial_peers), os.environ))
        identity = Identity.load(Path(identity_path)) if identity_path else Identity.create()
        self.client_mode, self.num_workers = client_mode, num_workers
        self.peer_id = PeerID(identity.public)
        self._name = f"petals-{socket.gethostname()}"[:256]
        self.directory = DirectoryClient(token, identity, self._name, role="client" if client_mode else "server")
        self.directory.start()
        self._agent: RelayAgent | None = None
        self._direct: tuple[str, ...] = ()
        try:
            bind = None if client_mode else bind_address(host_maddrs, token)
            self.swarm_node = Node(self.directory, identity, bind)
        except BaseException:
            self.directory.close()
            raise
        if (listener := self.swarm_node.listener) is not None:
            self._direct = reachable(listener.host, listener.port, advertised(announce_maddrs or ()))
            self._agent = RelayAgent(lambda: self.directory.view.routers, identity, listener.host, listener.port)
        self._loop = LoopThread("petals-dht")
        self.node = DHTNode(self)
        self._facts: tuple[int, int, int] | None = None
        self._instance = secrets.token_hex(8)
        self._alive = True

    def describe(self, blocks: int, hidden_size: int, context_length: int) -> None:
        """What a server announces of its model besides its own blocks."""
        self._facts = blocks, hidden_size, context_length

    def run_coroutine(self, function: Callable[..., Coroutine[Any, Any, Any]], return_future: bool = False) -> Any:
        """Run `function(dht, node)` in the loop of this DHT; wait for its result unless `return_future`."""
        future: Future[Any] = self._loop.submit(function(self, self.node))
        return future if return_future else future.result()

    async def replicate_p2p(self) -> P2P:
        return P2P(self.swarm_node)

    def store(self, key: str, value: Any, expiration_time: float, subkey: Any = None) -> bool:
        """Upstream's list of models; what models there are is seen from the announcements of blocks."""
        return True

    def get_visible_maddrs(self, latest: bool = False) -> list[str]:
        return list(self._addresses())

    def is_alive(self) -> bool:
        return self._alive

    def join(self, timeout: float | None = None) -> None:
        """There is no process to wait for."""

    def shutdown(self) -> None:
        """Leave the swarm. A second call does nothing."""
        if self._alive:
            self._alive = False
            self.directory.withdraw()
            if self._agent is not None:
                self._agent.close()
            self.swarm_node.close()
            self.directory.close()
            self._loop.close()

    def _addresses(self) -> tuple[str, ...]:
        return self._agent.reachable(self._direct) if self._agent is not None else self._direct

    def announce(self, prefix: str, said: Sequence[Any]) -> None:
        """Tell the directory what upstream's server says of itself, or that it leaves.

        Raises:
            routing.errors.DirectoryError: the directory says no.
        """
        state, throughput, info = said
        if state not in _STATES:
            self.directory.withdraw()
            return
        if self._facts is None:
            raise ValueError("nothing is known of the model: call describe() first")
        blocks, hidden_size, context_length = self._facts
        kv_free = info.get("cache_tokens_left") or 0
        self.directory.announce(
            wire.ServerInfo(
                key=self.peer_id.key,
                name=info.get("public_name") or self._name,
                addresses=self._addresses(),
                model=prefix,
                blocks=blocks,
                start=info["start_block"],
                end=info["end_block"],
                hidden_size=hidden_size,
                context_length=context_length,
                backend="petals server",
                device="",
                dtype=info.get("torch_dtype") or "",
                quantize="" if info.get("quant_type") in (None, "none") else info["quant_type"],
                state=_STATES[state],  # type: ignore[arg-type]
                throughput=float(info.get("inference_rps") or throughput),
                kv_tokens=kv_free,
                load=wire.ServerLoad(kv_free=kv_free),
                protocol="petals",
                version=info.get("version") or "",
                instance=self._instance,
            )
        )

    def serving(self, prefix: str, block: int) -> dict[str, DHTValue]:
        """The servers of one block, as upstream reads them."""
        expires = time.time() + 3600.0  # the directory drops those whose lease runs out
        return {
            server.key: DHTValue(_said(server), expires)
            for server in self.directory.view.serving(prefix, "petals")
            if server.start <= block < server.end
        }


def _said(server: wire.ServerInfo) -> tuple[int, float, dict[str, Any]]:
    state = _ONLINE if server.state == "ready" else _JOINING
    return (
        state,
        server.throughput,
        {
            "start_block": server.start,
            "end_block": server.end,
            "public_name": server.name,
            "version": server.version,
            "inference_rps": server.throughput,
            "torch_dtype": server.dtype,
            "quant_type": server.quantize or "none",
            "cache_tokens_left": server.load.kv_free,
        },
    )


class DHTNode:
    """DHT node: what upstream's coroutines are given to look things up and to store them."""

    def __init__(self, dht: DHT) -> None:
        self._dht = dht
        self.protocol = _Protocol(dht)

    async def store_many(
        self,
        keys: Sequence[str],
        subkeys: Sequence[str],
        values: Sequence[Any],
        expiration_time: float,
        num_workers: int | None = None,
    ) -> dict[str, bool]:
        """A server's blocks, all with the same value. How long that holds is the directory's to say."""
        prefixes = {block_of(key)[0] for key in keys}
        for prefix in prefixes:
            await asyncio.to_thread(self._dht.announce, prefix, values[0])
        return dict.fromkeys(keys, True)

    async def get_many(
        self, keys: Sequence[str], expiration_time: float = math.inf, num_workers: int | None = None
    ) -> dict[str, DHTValue | None]:
        found: dict[str, DHTValue | None] = {}
        for key in keys:
            servers = self._dht.serving(*block_of(key))
            found[key] = DHTValue(servers, math.inf) if servers else None
        return found


class _Protocol:
    def __init__(self, dht: DHT) -> None:
        self._dht = dht
        self.node_info = NodeInfo(dht.peer_id.to_bytes())

    def get_stub(self, peer: PeerID) -> _Pinged:
        return _Pinged(self._dht.swarm_node, peer)


class _Pinged:
    """A peer that can be pinged."""

    def __init__(self, node: Node, peer: PeerID) -> None:
        self._node, self._peer = node, peer

    async def rpc_ping(self, request: PingRequest, timeout: float | None = None) -> PingResponse:
        """Raises: CallError, TimeoutError: it does not answer."""
        parts = Parts(asyncio.get_running_loop())
        number = self._node.ping(self._peer.key, parts)
        try:
            await asyncio.wait_for(parts.get(), timeout)
        finally:
            self._node.abandon(self._peer.key, number)
        return PingResponse(available=True)


def block_of(key: str) -> tuple[str, int]:
    """`PREFIX.12`. Raises: ValueError: upstream stores something else than blocks."""
    match = _BLOCK.fullmatch(key)
    if match is None:
        raise ValueError(f"{key!r} is no block: only blocks can be stored and looked up")
    return match["prefix"], int(match["block"])


def join_token(initial_peers: Iterable[str], environment: Mapping[str, str]) -> str:
    """The join token among the initial peers, or else that of the environment.

    Raises:
        ValueError: there is none.
    """
    for peer in initial_peers:
        if peer.startswith(TOKEN_PREFIX):
            return peer
    token = environment.get("SWARM_JOIN", "")
    if not token:
        raise ValueError(f"no join token: give one ({TOKEN_PREFIX}...) as initial peer, or in SWARM_JOIN")
    return token


def bind_address(maddrs: Sequence[str], token: JoinToken) -> str:
    """`host:port` of the first `/ip4/HOST/tcp/PORT`; on loopback where the whole swarm is on this machine."""
    found = next(filter(None, (re.fullmatch(r"/ip4/([\d.]+)/tcp/(\d+)", maddr) for maddr in maddrs)), None)
    host, port = found.groups() if found else ("0.0.0.0", "0")
    hosts = {split_address(address)[0] for site in token.directories for address in site.addresses}
    if host == "0.0.0.0" and all(name in ("localhost", "::1") or name.startswith("127.") for name in hosts):
        host = "127.0.0.1"
    return f"{host}:{port}"


def advertised(maddrs: Sequence[str]) -> list[str]:
    """`HOST:PORT` of `/ip4/HOST/tcp/PORT` and `/dns/HOST/tcp/PORT`; others cannot be dialled and are left out."""
    found = (re.match(r"/(?:ip4|dns4?)/([^/]+)/tcp/(\d+)", maddr) for maddr in maddrs)
    return [f"{match[1]}:{match[2]}" for match in found if match]
