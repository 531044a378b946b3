"""Agent: what a peer that listens does at the swarm's routers, so that those who cannot dial it still reach it.

It keeps a connection to up to `ROUTERS` of them. When one tells of a caller, it connects to the router with the ticket
and to its own listener, and joins the two; so the caller's handshake is with the listener, as if it had dialled it.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress

import zmq

from routing import wire
from routing.addresses import MOST
from routing.links import Connected, Context, Dialer, LinkEvent, Lost, Received, split_address
from routing.relay.rules import JOINED, Preamble, relay_address
from routing.relay.splice import Background, close, connect, splice
from routing.security import Identity, short_id

log = logging.getLogger(__name__)

ROUTERS = 2  # at which a peer can be reached at a time, so that the loss of one leaves a way
OF_EACH = 3  # addresses of a router to pass on
RENEW = 10.0  # s between two registrations
TICK = 200  # ms
PATIENCE = 5.0  # s to connect
CALLERS = 128  # at a time


class RelayAgent:
    """Relay agent of a peer that listens.

    Args:
        routers: the routers of the swarm, by key; asked again and again, from the agent's own thread.
        host, port: where this peer's listener is.
    """

    def __init__(
        self,
        routers: Callable[[], Mapping[str, wire.RouterInfo]],
        identity: Identity,
        host: str,
        port: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._routers = routers
        self._key = identity.public
        self._listener = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(host, host), port
        self._clock = clock
        self._context: Context = zmq.Context()
        self._poller = zmq.Poller()
        self._dialer = Dialer(self._context, identity, self._poller, clock)
        self._background = Background("agent-callers")
        self._requests = itertools.count(1)
        self._known: Mapping[str, wire.RouterInfo] = {}
        self._registered: dict[str, tuple[str, ...]] = {}  # router's key, and our addresses there
        self._renew_at: dict[str, float] = {}
        self._callers: set[Future[None]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._thread.start()

    def reachable(self, direct: tuple[str, ...], only_relayed: bool = False) -> tuple[str, ...]:
        """The addresses to announce now: the direct ones, which are tried first, then those through routers.

        May be called from any thread.

        Args:
            only_relayed: leave the direct ones out where there are others.
        """
        relayed = tuple(itertools.chain.from_iterable(self._registered.copy().values()))
        if only_relayed and relayed:
            return relayed
        return (*direct[: MOST - len(relayed)], *relayed)

    def close(self) -> None:
        """Hang up at the routers, and on those who came through them."""
        self._stop.set()
        self._thread.join()
        self._background.close()
        self._dialer.close()
        self._context.term()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            self._follow(self._routers())
            if self._poller.sockets:
                self._poller.poll(TICK)
            else:  # a poller of nothing does not wait
                self._stop.wait(TICK / 1000)
            for event in self._dialer.collect():
                self._on_event(event)
            now = self._clock()
            for router, due in self._renew_at.items():
                if now >= due:
                    self._register(router)

    def _follow(self, routers: Mapping[str, wire.RouterInfo]) -> None:
        """Dial the routers that are ours. One that is up stays, also when the directory has lost sight of it."""
        self._known = routers
        # Each peer has an order of its own, so that peers spread over routers.
        ranked = sorted(routers, key=lambda router: hashlib.sha256((router + self._key).encode()).digest())
        ranked.sort(key=lambda router: not self._dialer.is_up(router))
        elsewhere = {router for router in self._dialer.peers() - routers.keys() if self._dialer.is_up(router)}
        ours = ranked[: max(ROUTERS - len(elsewhere), 0)]
        for router in self._dialer.peers() - elsewhere - set(ours):
            self._dialer.hang_up(router)
            self._forget(router)
        for router in ours:
            self._dialer.dial(router, routers[router].addresses)

    def _on_event(self, event: LinkEvent) -> None:
        match event:
            case Connected(router):
                self._register(router)
            case Received(router, wire.Done()):
                if router not in self._registered and (known := self._known.get(router)) is not None:
                    log.info("can be reached through router %s (%s)", known.name, known.addresses[0])
                    addresses = (relay_address(address, self._key) for address in known.addresses[:OF_EACH])
                    self._registered[router] = tuple(addresses)
            case Received(router, wire.Refused() as refused):
                log.warning("router %s: %s", short_id(router), refused.reason)
                self._registered.pop(router, None)
            case Received(router, wire.Caller(ticket)):
                self._answer(self._dialer.address(router), ticket)
            case Lost(router, reason):
                if self._forget(router):
                    log.info("lost router %s: %s", short_id(router), reason)

    def _register(self, router: str) -> None:
        self._renew_at[router] = self._clock() + RENEW
        self._dialer.send(router, wire.Register(next(self._requests)))

    def _forget(self, router: str) -> bool:
        """No peer reaches us there any longer. Whether one did."""
        self._renew_at.pop(router, None)
        return self._registered.pop(router, None) is not None

    def _answer(self, router: str, ticket: bytes) -> None:
        self._callers = {caller for caller in self._callers if not caller.done()}
        if len(self._callers) < CALLERS:
            self._callers.add(self._background.start(self._fetch(router, ticket)))

    # --- callers -----------------------------------------------------------------------------------------------------

    async def _fetch(self, router: str, ticket: bytes) -> None:
        """Fetch the caller from the router, and take them to the listener."""
        with suppress(OSError):
            there = await connect(*split_address(router), PATIENCE)
            try:
                there.writer.write(bytes(Preamble("ticket", ticket)))
                async with asyncio.timeout(PATIENCE):
                    joined = await there.reader.read(1) == JOINED
                if joined:
                    await splice(there, await connect(*self._listener, PATIENCE))
            finally:
                await close(there)
