"""Valid conversations with each kind of target, for `mutation` to damage. Each is a list of messages in frames."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from routing import wire
from routing.relay.rules import Preamble, name_of
from tests.fuzz.mutation import Frames, Mutator, plain
from tests.fuzz.toy_backend import MODEL
from tests.swarm.toy import BLOCKS, VOCAB, WIDTH

Talk = Callable[[], list[Frames]]
NOWHERE = ("127.0.0.1:9",)


def say(message: wire.Message, array: wire.Array | None = None) -> Frames:
    return plain(wire.encode(message, array))


class ServerTalk:
    """What a member may say to a server of the whole toy model.

    Args:
        server: public key of the server.
        me: public key of who speaks, who is hop before and after the server in some of the routes.
    """

    def __init__(self, server: str, me: str, seed: int) -> None:
        self._server, self._me = server, me
        self._random = random.Random(seed)
        self._sessions = [self._id() for _ in range(8)]  # come back again and again

    def __call__(self) -> list[Frames]:
        if self._random.random() < 0.15:
            return self._requests()
        return self._session()

    def _id(self) -> str:
        return self._random.randbytes(16).hex()

    def _session(self) -> list[Frames]:
        """Open it, prefill, go on, go back, close it (not always)."""
        choose = self._random.choice
        session = choose(self._sessions) if self._random.random() < 0.7 else self._id()
        epoch = self._random.randrange(0, 1 << 20)
        start = choose((0, 0, 2))
        end = choose((4, BLOCKS, BLOCKS))
        route = self._route(start, end)
        hop = next(number for number, each in enumerate(route) if each.peer == self._server)
        length = choose((16, 64, 200))
        sampling = self._sampling()
        history = tuple(self._ids(4)) if self._random.random() < 0.5 else ()
        generation = wire.Generation(3, length, sampling, history) if end == BLOCKS and choose((0, 1)) else None
        said = [say(wire.Open(session, epoch, MODEL, route, hop, length, choose((0, 0, 3)), generation))]
        at = 0
        for _ in range(self._random.randrange(1, 5)):
            count = choose((1, 1, 2, 9))
            output = choose(("logits", "hidden"))
            starts = choose(((), (at,) * len(route), tuple(self._random.randrange(at + 2) for _ in route)))
            message = wire.Forward(session, epoch, at, choose((0, 1, count)), output, starts)
            said.append(say(message, self._inputs(start, count)))
            said.append(say(wire.Probe(session, epoch)))
            at = at + count if self._random.random() < 0.8 else max(at - 1, 0)
        if self._random.random() < 0.7:
            said.append(say(wire.Close(session)))
        return said

    def _route(self, start: int, end: int) -> tuple[wire.Hop, ...]:
        before = [wire.Hop(self._me, NOWHERE, 0, start)] if start else []
        after = [wire.Hop(self._me, NOWHERE, end, BLOCKS)] if end < BLOCKS else []
        return (*before, wire.Hop(self._server, NOWHERE, start, end), *after)

    def _sampling(self) -> wire.Sampling:
        choose = self._random.choice
        return wire.Sampling(
            temperature=choose((0.0, 0.7, 100.0, 1e-300)),
            top_k=choose((0, 5, 1 << 30)),
            top_p=choose((1.0, 0.5, 1e-9)),
            min_p=choose((0.0, 0.3, 1.0)),
            repetition_penalty=choose((1.0, 1.3, 1e-300)),
            frequency_penalty=choose((0.0, -100.0)),
            grammar=choose((*[""] * 8, "start: /a*/", "[" * 60000)),
            logit_bias=choose(({}, {3: 1000.0}, {(1 << 31) - 1: 1.0})),
            stop_ids=choose(((), (1, 2))),
            logprobs=choose((-1, 0, 3, 100)),
            seed=choose((0, (1 << 63) - 1)),
        )

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(VOCAB) for _ in range(count)]

    def _inputs(self, start: int, count: int) -> wire.Array:
        if start == 0:
            return np.array(self._ids(count), np.int32)
        return np.array([[self._random.gauss(0, 1) for _ in range(WIDTH)] for _ in range(count)], np.float32)

    def _requests(self) -> list[Frames]:
        names = ("config.json", "tokenizer.json", "../config.json", "/etc/passwd", "")
        offset = self._random.choice((0, 1, 1 << 40, (1 << 62) - 1))
        said = [
            say(wire.Ping(7)),
            say(wire.Credit(1 << 40)),
            say(wire.Leaving(self._id(), 1)),
            say(wire.ListFiles(1, MODEL)),
            say(wire.ReadFile(2, MODEL, self._random.choice(names), offset)),
            say(wire.Done(3)),
            say(wire.Token(self._id(), 1, 1, 1)),
            say(wire.Failed(self._id(), 1, "gap", "nothing\n\x1b[31m is well")),
        ]
        self._random.shuffle(said)
        return said[: self._random.randrange(1, len(said))]


class RouterTalk:
    """What a member may say to a router."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self) -> list[Frames]:
        said = [
            say(wire.Register(1)),
            say(wire.Ping(2)),
            say(wire.Caller(self._random.randbytes(16))),
            say(wire.Withdraw(3)),
            say(wire.Close("0" * 32)),
        ]
        self._random.shuffle(said)
        return said[: self._random.randrange(1, len(said))]


class RawTalk:
    """What anybody may say to a router's port: whom to dial, a ticket, ZMTP's greeting, each damaged mostly."""

    def __init__(self, peer: str, seed: int) -> None:
        self._peer = peer
        self._random = random.Random(seed)

    def __call__(self, mutator: Mutator) -> bytes:
        said = self._random.choice(
            (
                bytes(Preamble("dial", name_of(self._peer))),
                bytes(Preamble("dial", self._random.randbytes(16))),
                bytes(Preamble("ticket", self._random.randbytes(16))),
                b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(48),
                b"GET / HTTP/1.1\r\n\r\n",
            )
        )
        said += self._random.randbytes(self._random.choice((0, 0, 10, 5000)))
        return b"".join(mutator.damaged([said])) if self._random.random() < 0.6 else said


class DirectoryTalk:
    """What a member, or a newcomer with the token's key, may say to a directory."""

    def __init__(self, me: str, seed: int) -> None:
        self._me = me
        self._random = random.Random(seed)

    def __call__(self) -> list[Frames]:
        said = [
            say(wire.Ping(1)),
            say(wire.Announce(2, self._described(), self._random.choice((0.0, 5.0, 1e9)))),
            say(wire.Place(3, self._described(), self._random.choice((1, 3, (1 << 31) - 1)), 5.0)),
            say(wire.Enrol(4, self._me, "somebody")),
            say(wire.Withdraw(5)),
            say(wire.Announce(6, self._described(), 15.0)),
            say(wire.Snapshot(1, 5, (), (self._described(),))),
            say(wire.Close("0" * 32)),
        ]
        if self._random.random() < 0.1:
            said.append(say(wire.Watch(7)))
        self._random.shuffle(said)
        return said[: self._random.randrange(1, len(said))]

    def _described(self) -> wire.ServerInfo:
        choose = self._random.choice
        start = self._random.randrange(BLOCKS)
        return wire.ServerInfo(
            key=self._me,
            name="mallory",
            addresses=choose((NOWHERE, ("127.0.0.1:1", "[::1]:2"), ("no address",))),
            model=choose(("mallory's", "other", "bad\x1b[2J")),
            blocks=choose((BLOCKS, BLOCKS, 2048, (1 << 31) - 1)),
            start=start,
            end=self._random.randrange(start + 1, BLOCKS + 1),
            hidden_size=WIDTH,
            context_length=0,
            backend="toy",
            device="cpu",
            dtype="float32",
            state=choose(("joining", "ready", "draining")),
            throughput=choose((1.0, 1e300, 0.0)),
            kv_tokens=1000,
            load=wire.ServerLoad(kv_free=choose((0, 1000, 1 << 61))),
            protocol=choose(("ring", "petals")),
            fingerprint={"config": choose(("a", "b"))},
            instance=choose(("", "x")),
        )
