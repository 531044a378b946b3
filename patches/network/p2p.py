"""Upstream's view of the network: servicers whose `rpc_*` methods others call through stubs, by peer id.

In upstream these are streams of libp2p; here they are calls over a `Node`. What a method takes and gives is read off
its annotations, as upstream means them: `AsyncIterator[Message]` for a stream of messages, `Message` for one.
"""

from __future__ import annotations

import asyncio
import collections.abc
import logging
import typing
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from patches.network.node import END, CallError, Method, Node, NodeCaller, Parts
from routing import wire

log = logging.getLogger(__name__)

DEFAULT_MAX_MSG_SIZE = 4 << 20  # bytes of a part of a tensor that is sent as a stream
MAX_UNARY_PAYLOAD_SIZE = wire.MAX_TENSOR // 8  # bytes of tensors up to which they are sent in one message

_KEY = 40  # characters of a CURVE public key in Z85


@dataclass(frozen=True, order=True)
class PeerID:
    """A peer: its public key. Upstream writes ids in base 58, and calls the methods so; here they are Z85."""

    key: str

    def to_base58(self) -> str:
        return self.key

    @classmethod
    def from_base58(cls, text: str) -> PeerID:
        """Raises: ValueError: this is no id of a peer."""
        if len(text) != _KEY:
            raise ValueError(f"{text!r} is no id of a peer: one has {_KEY} characters")
        return cls(text)

    def to_bytes(self) -> bytes:
        return self.key.encode()

    def __str__(self) -> str:
        return self.key


@dataclass(frozen=True)
class P2PContext:
    """Context of a call: its caller and its callee."""

    local_id: PeerID
    remote_id: PeerID


class P2P:
    """A handle on this peer's node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.peer_id = PeerID(node.key)


@dataclass(frozen=True)
class Signature:
    """Signature: what a method takes and gives."""

    request: type[msgspec.Struct]
    takes_stream: bool
    response: type[msgspec.Struct]
    gives_stream: bool


@cache
def signatures(servicer: type) -> dict[str, Signature]:
    """Of all `rpc_*` methods.

    Raises:
        TypeError: one is not annotated with messages.
    """
    found = {}
    for name in dir(servicer):
        if name.startswith("rpc_"):
            hints = typing.get_type_hints(getattr(servicer, name))
            given = [hint for parameter, hint in hints.items() if parameter in ("request", "requests")]
            if len(given) != 1 or "return" not in hints:
                raise TypeError(f"{servicer.__name__}.{name} does not say which messages it takes and gives")
            request, takes_stream = _message(given[0])
            response, gives_stream = _message(hints["return"])
            found[name] = Signature(request, takes_stream, response, gives_stream)
    return found


def _message(hint: Any) -> tuple[type[msgspec.Struct], bool]:
    if typing.get_origin(hint) is collections.abc.AsyncIterator:
        return typing.get_args(hint)[0], True
    return hint, False


class StubBase:
    """The `rpc_*` methods of a servicer at another peer."""

    def __init__(self, p2p: P2P, peer_id: PeerID, servicer: type) -> None:
        self._p2p, self._peer, self._servicer = p2p, peer_id, servicer

    def __getattr__(self, name: str) -> Any:
        signature = signatures(self._servicer).get(name)
        if signature is None:
            raise AttributeError(name)
        method = f"{self._servicer.__name__}.{name}"

        async def call(given: Any, timeout: float | None = None) -> Any:
            """One message, or an iterator over those that come.

            Raises:
                CallError: the call failed there, or on the way.
                TimeoutError: there was no answer within `timeout` seconds.
            """
            answer = P2PAnswer(self._p2p.node, self._peer.key, signature)
            answer.begin(method, given)
            if signature.gives_stream:
                return answer
            try:
                return await asyncio.wait_for(anext(answer), timeout)
            except StopAsyncIteration:
                raise CallError(f"{method} gave no answer") from None
            finally:
                answer.close()

        return call


class P2PAnswer(AsyncIterator[Any]):
    """P2 P answer: what a call gives, as it comes. To be used, and dropped, in the loop that began it."""

    def __init__(self, node: Node, peer: str, signature: Signature) -> None:
        self._node, self._peer, self._signature = node, peer, signature
        self._loop = asyncio.get_running_loop()
        self._parts = Parts(self._loop)
        self._decoder = msgspec.msgpack.Decoder(signature.response)
        self._request = 0
        self._feeder: asyncio.Task[None] | None = None
        self._ended = False

    def begin(self, method: str, given: Any) -> None:
        """Open the call, and send what it is given as that comes."""
        self._request = self._node.call(self._peer, self._parts)
        if self._signature.takes_stream:
            self._feeder = self._loop.create_task(
                _feed(self._node, self._peer, self._request, method, given, self._parts)
            )
        else:
            self._node.send(self._peer, self._request, method, msgspec.msgpack.encode(given), True)

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        try:
            part = await self._parts.get()
            if part is not END:
                return self._decoder.decode(part)
        except (CallError, msgspec.MsgspecError) as error:
            self.close()
            raise error if isinstance(error, CallError) else CallError(f"an answer that is none: {error}") from error
        self.close()
        raise StopAsyncIteration

    def close(self) -> None:
        """Wait for nothing more. A second call does nothing."""
        if not self._ended:
            self._ended = True
            self._node.abandon(self._peer, self._request)
            if self._feeder is not None:
                self._feeder.cancel()

    def __del__(self) -> None:
        # Upstream drops the stream of a session that has made no step.
        if not self._ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close)


async def _feed(node: Node, peer: str, request: int, method: str, given: AsyncIterator[Any], parts: Parts) -> None:
    try:
        async for message in given:
            node.send(peer, request, method, msgspec.msgpack.encode(message), False)
            method = ""
    except Exception as error:  # noqa: BLE001 - the reader of the answer gets it
        parts.put(CallError(f"the input of the call failed: {error!r}"))
    else:
        node.send(peer, request, method, None, True)


class ServicerBase:
    """Something with `rpc_*` methods that other peers may call."""

    async def add_p2p_handlers(
        self, p2p: P2P, wrapper: Any = None, *, namespace: str | None = None, balanced: bool = False
    ) -> None:
        """Answer calls from now on, in the running loop."""
        loop = asyncio.get_running_loop()
        servicer = wrapper if wrapper is not None else self
        for name, signature in signatures(type(self)).items():  # type: ignore[arg-type]  # a class is hashable
            run = _runner(p2p, getattr(servicer, name), signature)
            p2p.node.serve(f"{type(self).__name__}.{name}", Method(loop, run))

    async def remove_p2p_handlers(self, p2p: P2P, *, namespace: str | None = None) -> None:
        for name in signatures(type(self)):  # type: ignore[arg-type]
            p2p.node.withdraw(f"{type(self).__name__}.{name}", asyncio.get_running_loop())

    @classmethod
    def get_stub(cls, p2p: P2P, peer: PeerID, *, namespace: str | None = None) -> StubBase:
        return StubBase(p2p, peer, cls)


def _runner(p2p: P2P, method: Any, signature: Signature) -> Any:
    node, decoder = p2p.node, msgspec.msgpack.Decoder(signature.request)

    async def messages(parts: Parts) -> AsyncIterator[Any]:
        while (part := await parts.get()) is not END:
            yield decoder.decode(part)

    async def run(caller: NodeCaller, parts: Parts) -> None:
        context = P2PContext(p2p.peer_id, PeerID(caller.peer))
        given = messages(parts)
        try:
            taken = given if signature.takes_stream else await anext(given)
            if signature.gives_stream:
                async for message in method(taken, context):
                    node.reply(caller, msgspec.msgpack.encode(message), False)
                node.reply(caller, None, True)
            else:
                node.reply(caller, msgspec.msgpack.encode(await method(taken, context)), True)
        except Exception as error:  # noqa: BLE001 - the caller gets it
            log.info("a call of %s failed: %r", caller.peer[:8], error)
            node.refuse(caller, f"{type(error).__name__}: {error}")

    return run
