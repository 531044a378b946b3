"""What the tests of routing are made of: messages of every kind, servers, keys, and peers with real sockets."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
import zmq
from hypothesis import strategies as st
from msgspec import inspect

from routing import wire
from routing.directory.directory import Directory
from routing.links import Connected, Context, Dialer, LinkEvent, Received
from routing.security import Identity, JoinToken
from routing.view import View

PATIENCE = 20  # s; only a test that fails waits so long


def strategy_of(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Every value that msgspec would take for a type, small ones mostly."""
    match kind:
        case inspect.IntType(ge=low, lt=below, le=high):
            return st.integers(low, below - 1 if below is not None else high)
        case inspect.FloatType(ge=low, gt=above, le=high):
            least = low if low is not None else above
            return st.floats(least, high, allow_nan=False, exclude_min=above is not None)
        case inspect.StrType(min_length=shortest, max_length=longest):
            characters = st.characters(exclude_categories=["Cs"])
            return st.text(characters, min_size=shortest or 0, max_size=max(shortest or 0, min(longest or 9, 9)))
        case inspect.BytesType(min_length=shortest, max_length=longest):
            return st.binary(min_size=shortest or 0, max_size=longest)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.EnumType(cls=members):
            return st.sampled_from(members)
        case inspect.VarTupleType(item_type=item, min_length=shortest):
            return st.lists(strategy_of(item), min_size=shortest or 0, max_size=3).map(tuple)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(strategy_of, items))
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(strategy_of(key), strategy_of(value), max_size=3)
        case inspect.UnionType(types=kinds):
            return st.one_of(*map(strategy_of, kinds))
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{each.name: strategy_of(each.type) for each in fields})
    raise AssertionError(f"no strategy for {kind}")


messages: st.SearchStrategy[wire.Message] = strategy_of(inspect.type_info(wire.AnyMessage))

DTYPES = ("bfloat16", "float16", "float32", "int32", "int64", "uint8")


def array_of(dtype: str, shape: tuple[int, ...], seed: int = 0) -> wire.Array:
    """Arbitrary bytes as an array."""
    kind = wire._DTYPES[dtype]
    count = int(np.prod(shape)) * kind.itemsize
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8).view(kind).reshape(shape)


KEYS = tuple(Identity.create().public for _ in range(6))


def server(key: str = KEYS[0], start: int = 0, end: int = 12, **fields: Any) -> wire.ServerInfo:
    """A server of a model of 12 blocks, unless said otherwise."""
    given: dict[str, Any] = {
        "key": key,
        "name": f"server-{key[:4]}",
        "addresses": ("127.0.0.1:7701",),
        "model": "toy",
        "blocks": 12,
        "start": start,
        "end": end,
        "hidden_size": 64,
        "context_length": 0,
        "backend": "toy",
        "device": "cpu",
        "dtype": "float32",
        "state": "ready",
        "throughput": 100.0,
        "kv_tokens": 1000,
        "kv_free": 1000,
        **fields,
    }
    load = {name: given.pop(name) for name in wire.ServerLoad.__struct_fields__ if name in given}
    return wire.ServerInfo(**given, load=wire.ServerLoad(**load))


def unnumbered(view: View) -> dict[str, wire.ServerInfo]:
    """The servers of a view as they were announced, without the number that tells which of two records is later."""
    return {key: msgspec.structs.replace(each, revision=0) for key, each in view.servers.items()}


@contextmanager
def running(directory: Directory) -> Iterator[Directory]:
    """A directory at work in a thread, closed at the end."""
    stop = threading.Event()
    thread = threading.Thread(target=directory.run, args=(stop,), name="directory")
    thread.start()
    try:
        yield directory
    finally:
        stop.set()
        thread.join()
        directory.close()


def directory_in(folder: Path, bind: str = "127.0.0.1:0", **options: Any) -> Directory:
    return Directory(bind, folder, **options)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Peer:
    """A peer with a plain dialer and no rules of its own, which may say anything."""

    def __init__(self, identity: Identity | None = None) -> None:
        self.identity = identity or Identity.create()
        self.key = self.identity.public
        self.context: Context = zmq.Context()
        self.poller = zmq.Poller()
        self.dialer = Dialer(self.context, self.identity, self.poller)
        self.unread: list[LinkEvent] = []
        self._requests = itertools.count(1)

    @classmethod
    def member_of(cls, directory: Directory) -> Self:
        """Enrolled with the directory's token and connected to it."""
        peer = cls()
        with Peer(Identity.from_secret(directory.token.secret)) as newcomer:
            newcomer.dial(directory.token)
            answer = newcomer.ask(directory.token.directory, wire.Enrol(1, peer.key, "peer"))
            assert isinstance(answer, wire.Done), answer
        peer.dial(directory.token)
        peer.next(Connected)
        return peer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.dialer.close()
        self.context.term()

    def dial(self, token: JoinToken) -> None:
        self.dialer.dial(token.directory, token.addresses)

    def events(self) -> Iterator[LinkEvent]:
        """Everything that happens, for `PATIENCE` seconds."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            while self.unread:
                yield self.unread.pop(0)
            self.poller.poll(50)
            self.unread.extend(self.dialer.collect())
        raise AssertionError("what the test waits for did not happen")

    def next(self, *kinds: type[Any]) -> Any:
        """The next event, or received message, of one of these kinds; what lies before is dropped."""
        for event in self.events():
            if isinstance(event, kinds):
                return event
            if isinstance(event, Received) and isinstance(event.message, kinds):
                return event.message
        raise AssertionError("unreachable")

    def ask(self, peer: str, message: Any) -> wire.AnyMessage:
        """Send a request and return its answer; what comes in between is kept."""
        message = msgspec.structs.replace(message, request=next(self._requests))
        assert self.dialer.send(peer, message)
        kept: list[LinkEvent] = []
        for event in self.events():
            if isinstance(event, Received) and getattr(event.message, "request", 0) == message.request:
                self.unread = kept + self.unread
                return event.message
            kept.append(event)
        raise AssertionError("unreachable")
