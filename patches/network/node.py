"""A peer that calls others and is called, over `routing.links`: one thread owns the sockets.

What a call means is not known here: a method is a name, parts are bytes (see `routing.petals_messages`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq

from routing import wire
from routing.client import DirectoryClient
from routing.links import Context, Dialer, LinkEvent, Listener, Lost, Received
from routing.security import Identity, ZapAuthenticator
from routing.thread import CommandQueue

log = logging.getLogger(__name__)

POLL = 100  # ms
HOUSEKEEPING = 1.0  # s between two looks whether callers are still connected
PATIENCE = 5.0  # s for a connection to come about: a peer that has just joined is not known everywhere at once
MAX_CALLS = 256  # that one peer may have open here
MAX_UNREAD = 512 << 20  # bytes of one call that wait to be read

END = None  # after the last part


class CallError(Exception):
    """A call that failed: there, on the way, or because no peer answers."""


class Parts:
    """Parts: what arrives of one call, in the loop of its reader; bytes, then `END` or an error."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[bytes | CallError | None] = asyncio.Queue()
        self._unread = 0
        self._counting = threading.Lock()

    def put(self, item: bytes | CallError | None) -> bool:
        """From any thread. False: too much waits to be read."""
        roomy = self._count(len(item) if isinstance(item, bytes) else 0) <= MAX_UNREAD
        with suppress(RuntimeError):  # the reader's loop is closed: this is not read any longer
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        return roomy

    async def get(self) -> bytes | None:
        """The next part, or `END`. Raises: CallError: the call failed."""
        item = await self._queue.get()
        if isinstance(item, CallError):
            raise item
        self._count(-len(item) if item is not None else 0)
        return item

    def _count(self, size: int) -> int:
        with self._counting:
            self._unread += size
            return self._unread


@dataclass(frozen=True)
class NodeCaller:
    """Node caller: where the answer to a call goes."""

    peer: str
    route: bytes
    request: int


@dataclass
class Method:
    """Method: what runs when a method is called; a coroutine function in `loop`."""

    loop: asyncio.AbstractEventLoop
    run: Callable[[NodeCaller, Parts], Coroutine[Any, Any, None]]


@dataclass
class _Incoming:
    parts: Parts
    task: asyncio.Task[None] | None = None
    loop: asyncio.AbstractEventLoop | None = None

    def cancel(self) -> None:
        if self.loop is not None:
            with suppress(RuntimeError):  # its loop is closed, so it has ended
                self.loop.call_soon_threadsafe(lambda: self.task and self.task.cancel())


@dataclass
class _Outgoing:
    peer: str
    parts: Parts
    opened: float


class Node:
    """Node of upstream's network: one peer's calls, its own and those of others.

    Args:
        directory: started; whom it does not admit gets no connection.
        bind: `host:port` to listen on; None: others cannot call this peer.

    Raises:
        routing.links.LinkError: it cannot listen there.
    """

    def __init__(self, directory: DirectoryClient, identity: Identity, bind: str | None) -> None:
        self.directory = directory
        self.key = identity.public
        self._context: Context = zmq.Context()
        self._poller = zmq.Poller()
        self._authenticator = ZapAuthenticator(self._context, directory.admits) if bind is not None else None
        self.listener: Listener | None = None
        try:
            if bind is not None:
                self.listener = Listener(self._context, bind, identity, directory.admits)
                self._poller.register(self.listener.socket, zmq.POLLIN)
        except BaseException:
            self._close_authenticator()
            self._context.term()
            raise
        self._dialer = Dialer(self._context, identity, self._poller, expelled=directory.expelled)
        self._requests = itertools.count(1)
        self._commands = CommandQueue(self._context, self._poller)
        self._lock = threading.Lock()
        self._closing = False
        self._methods: dict[str, list[Method]] = {}
        self._turns = itertools.count()
        self._incoming: dict[tuple[bytes, int], tuple[NodeCaller, _Incoming]] = {}
        self._outgoing: dict[int, _Outgoing] = {}
        self._look_at = 0.0
        self._thread = threading.Thread(target=self._run, name="petals-node", daemon=True)
        self._thread.start()

    # --- from any thread ---------------------------------------------------------------------------------------------

    def serve(self, name: str, method: Method) -> None:
        """Run the method when it is called. Several of one name take turns."""
        self._do(lambda: self._methods.setdefault(name, []).append(method))

    def withdraw(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        """Serve the method no longer in this loop."""
        self._do(lambda: self._methods.update({name: [m for m in self._methods.get(name, ()) if m.loop is not loop]}))

    def call(self, peer: str, parts: Parts) -> int:
        """Open a call; what it answers is put into `parts`. Returns the call's number."""
        request = next(self._requests) % (1 << 31)
        self._do(lambda: self._open(peer, request, parts))
        return request

    def send(self, peer: str, request: int, method: str, part: bytes | None, last: bool) -> None:
        """A part of what the callee is given; `method` with the first one only."""
        self._do(lambda: self._send(peer, request, wire.Call(request, method, last), part))

    def ping(self, peer: str, parts: Parts) -> int:
        """`END` is put into `parts` when the peer has answered. Our own servers answer, too."""
        request = next(self._requests) % (1 << 31)

        def command() -> None:
            self._open(peer, request, parts)
            self._send(peer, request, wire.Ping(request), None)

        self._do(command)
        return request

    def abandon(self, peer: str, request: int) -> None:
        """No caller waits for the answer any longer."""

        def command() -> None:
            if self._outgoing.pop(request, None) is not None:
                self._dialer.send(peer, wire.Abandon(request))

        self._do(command)

    def reply(self, caller: NodeCaller, part: bytes | None, last: bool) -> None:
        self._do(lambda: self._answer(caller, wire.Reply(caller.request, last), part))

    def refuse(self, caller: NodeCaller, reason: str) -> None:
        self._do(
            lambda: self._answer(
                caller, wire.Refused(wire.RefusalCode.CALL, reason[:4096], request=caller.request), None
            )
        )

    def close(self) -> None:
        """End every call and the thread. A second call does nothing."""

        def command() -> None:
            self._closing = True

        self._do(command)
        self._thread.join()

    def _do(self, command: Callable[[], None]) -> None:
        if not self._closing:
            self._commands.put(command)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            self._poller.poll(POLL)
            self._commands.run()
            while self.listener is not None and (received := self.listener.receive()) is not None:
                self._called(received)
            for event in self._dialer.collect():
                self._on_link(event)
            if time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + HOUSEKEEPING
                self._look()
        with self._lock:
            for peer in {outgoing.peer for outgoing in self._outgoing.values()}:
                self._fail(peer, "this peer is leaving")
            for _, incoming in self._incoming.values():
                incoming.cancel()
            self._dialer.close()
            if self.listener is not None:
                self.listener.close()
            self._close_authenticator()
            self._commands.close()
            self._context.term()

    def _close_authenticator(self) -> None:
        if self._authenticator is not None:
            self._authenticator.close()

    def _open(self, peer: str, request: int, parts: Parts) -> None:
        server = self.directory.view.servers.get(peer)
        if server is None:
            parts.put(CallError(f"peer {peer[:8]} is not in the swarm any longer"))
            return
        self._outgoing[request] = _Outgoing(peer, parts, time.monotonic())
        try:
            self._dialer.dial(peer, server.addresses)
        except zmq.ZMQError as error:
            self._fail(peer, f"cannot be dialled: {error}")

    def _send(self, peer: str, request: int, message: wire.Message, part: bytes | None) -> None:
        if request not in self._outgoing:
            return
        try:
            sent = self._dialer.send(peer, message, _array(part))
        except wire.WireError as error:
            self._outgoing.pop(request).parts.put(CallError(str(error)))
            return
        if not sent:
            self._outgoing.pop(request).parts.put(CallError(f"peer {peer[:8]} does not take in what is sent to it"))

    def _on_link(self, event: LinkEvent) -> None:
        match event:
            case Received(peer, wire.Reply(request, last), array) if self._is_open(peer, request):
                parts = self._outgoing[request].parts
                roomy = array is None or parts.put(array.tobytes())
                if not roomy:
                    self._dialer.send(peer, wire.Abandon(request))
                    parts.put(CallError("the answer comes faster than it is read"))
                elif last:
                    parts.put(END)
                if last or not roomy:
                    del self._outgoing[request]
            case Received(peer, wire.Refused() as refused, _) if self._is_open(peer, refused.request):
                self._outgoing.pop(refused.request).parts.put(CallError(refused.reason))
            case Received(peer, wire.Pong(request), _) if self._is_open(peer, request):
                self._outgoing.pop(request).parts.put(END)
            case Lost(peer, "closed"):
                self._fail(peer, "the connection broke")
            case Lost(peer, reason):
                self._fail(peer, reason, time.monotonic() - PATIENCE)

    def _is_open(self, peer: str, request: int) -> bool:
        return request in self._outgoing and self._outgoing[request].peer == peer

    def _fail(self, peer: str, reason: str, opened_before: float = float("inf")) -> None:
        """End the calls to a peer."""
        for request, outgoing in list(self._outgoing.items()):
            if outgoing.peer == peer and outgoing.opened <= opened_before:
                del self._outgoing[request]
                outgoing.parts.put(CallError(f"peer {peer[:8]}: {reason}"))

    def _called(self, received: Received) -> None:
        match received:
            case Received(peer, wire.Call(request, method, last), array, route):
                caller = NodeCaller(peer, route, request)
                incoming = self._incoming.get((route, request))
                if incoming is None:
                    if not method or not self._begin(caller, method):
                        return
                    incoming = self._incoming[route, request]
                parts = incoming[1].parts
                if array is not None and not parts.put(array.tobytes()):
                    incoming[1].cancel()
                    self._answer(
                        caller, wire.Refused(wire.RefusalCode.CALL, "more is sent than is read", request=request), None
                    )
                elif last:
                    parts.put(END)
            case Received(_, wire.Abandon(request), _, route):
                if (known := self._incoming.pop((route, request), None)) is not None:
                    known[1].cancel()
            case Received(_, wire.Ping(request), _, route):
                assert self.listener is not None
                self.listener.send(route, wire.Pong(request))

    def _begin(self, caller: NodeCaller, name: str) -> bool:
        methods = self._methods.get(name)
        open_here = sum(known.peer == caller.peer for known, _ in self._incoming.values())
        if not methods or open_here >= MAX_CALLS:
            reason = f"{MAX_CALLS} calls are open already" if methods else "protocol not supported"
            self._answer(caller, wire.Refused(wire.RefusalCode.CALL, reason, request=caller.request), None)
            return False
        method = methods[next(self._turns) % len(methods)]
        incoming = _Incoming(Parts(method.loop), loop=method.loop)
        self._incoming[caller.route, caller.request] = caller, incoming

        def start() -> None:
            incoming.task = method.loop.create_task(method.run(caller, incoming.parts))

        try:
            method.loop.call_soon_threadsafe(start)
        except RuntimeError:  # the loop was closed a moment ago
            self._answer(
                caller, wire.Refused(wire.RefusalCode.CALL, "it is about to end", request=caller.request), None
            )
            return False
        return True

    def _answer(self, caller: NodeCaller, message: wire.Message, part: bytes | None) -> None:
        assert self.listener is not None
        key = (caller.route, caller.request)
        ended = isinstance(message, wire.Refused) or (isinstance(message, wire.Reply) and message.last)
        known = self._incoming.pop(key, None) if ended else self._incoming.get(key)
        if known is None and not isinstance(message, wire.Refused):
            return  # it was abandoned
        try:
            sent = self.listener.send(caller.route, message, _array(part))
        except wire.WireError as error:
            self._incoming.pop(key, None)
            sent = self.listener.send(
                caller.route, wire.Refused(wire.RefusalCode.CALL, str(error), request=caller.request)
            )
        if not sent and known is not None:
            self._incoming.pop(key, None)
            known[1].cancel()

    def _look(self) -> None:
        """Hang up on who left, and end the calls of who is gone: ZeroMQ tells of that only when something is sent."""
        needed = {outgoing.peer for outgoing in self._outgoing.values()}
        for peer in self._dialer.peers() - needed - self.directory.view.servers.keys():
            self._dialer.hang_up(peer)
        for route in {caller.route for caller, _ in self._incoming.values()}:
            if self.listener is not None and not self.listener.send(route, wire.Pong(0)):
                for key in [key for key in self._incoming if key[0] == route]:
                    self._incoming.pop(key)[1].cancel()


def _array(part: bytes | None) -> wire.Array | None:
    return None if part is None else np.frombuffer(part, np.uint8)
