"""Calls between peers, over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from patches.concurrency.loops import RemoteExpertWorker, iter_as_aiter
from patches.network.connection_handler import ConnectionHandler
from patches.network.dht import DHT
from patches.network.messages import PingRequest
from patches.network.node import CallError
from patches.network.p2p import P2PContext, PeerID, StubBase
from routing.security import Identity
from tests.patches.conftest import Join

LIMIT = 60.0  # s; only a test that fails waits so long


class Text(msgspec.Struct):
    text: str = ""


class Toy(ConnectionHandler):
    """Methods of all four kinds."""

    def __init__(self, dht: DHT) -> None:
        super().__init__(dht, {})
        self.given_up = threading.Event()
        self.started = threading.Event()

    async def rpc_echo(self, request: Text, context: P2PContext) -> Text:
        if request.text == "fail":
            raise ValueError("as asked")
        return Text(f"{request.text} from {context.remote_id}")

    async def rpc_join(self, requests: AsyncIterator[Text], context: P2PContext) -> Text:
        return Text("".join([request.text async for request in requests]))

    async def rpc_split(self, request: Text, context: P2PContext) -> AsyncIterator[Text]:
        for character in request.text:
            yield Text(character)

    async def rpc_double(self, requests: AsyncIterator[Text], context: P2PContext) -> AsyncIterator[Text]:
        try:
            async for request in requests:
                self.started.set()
                yield Text(request.text * 2)
        except asyncio.CancelledError:
            self.given_up.set()
            raise


@contextmanager
def serving(dht: DHT) -> Iterator[Toy]:
    dht.describe(blocks=2, hidden_size=4, context_length=0)
    dht.announce("toy", (2, 1.0, {"start_block": 0, "end_block": 2}))
    handler = Toy(dht)
    handler.run_in_background(timeout=LIMIT)
    try:
        yield handler
    finally:
        handler._outer_pipe.send("_shutdown")
        handler.join(LIMIT)
        assert not handler.is_alive()


def stub(client: DHT, server: DHT) -> StubBase:
    client.directory.wait_for(lambda view: server.peer_id.key in view.servers, LIMIT)
    return Toy.get_stub(RemoteExpertWorker.run_coroutine(client.replicate_p2p()), server.peer_id)


def test_calls_of_every_kind_between_two_peers(join: Join) -> None:
    server, client = join(), join(client_mode=True)

    async def scenario(toy: StubBase) -> None:
        one = await toy.rpc_echo(Text("hello"), timeout=LIMIT)
        assert one.text == f"hello from {client.peer_id}"
        joined = await toy.rpc_join(iter_as_aiter([Text("a"), Text("b")]), timeout=LIMIT)
        assert joined.text == "ab"
        assert [part.text async for part in await toy.rpc_split(Text("xyz"))] == ["x", "y", "z"]
        doubled = await toy.rpc_double(iter_as_aiter([Text("1"), Text("2")]))
        assert [part.text async for part in doubled] == ["11", "22"]
        large = "m" * (3 << 20)  # more than one frame
        assert (await toy.rpc_join(iter_as_aiter([Text(large)]), timeout=LIMIT)).text == large
        with pytest.raises(CallError, match="ValueError: as asked"):
            await toy.rpc_echo(Text("fail"), timeout=LIMIT)
        with pytest.raises(AttributeError):
            _ = toy.rpc_other

    with serving(server):
        RemoteExpertWorker.run_coroutine(scenario(stub(client, server)))
    assert client.run_coroutine(lambda dht, node: node.protocol.get_stub(server.peer_id).rpc_ping(PingRequest(), LIMIT))


def test_a_call_that_nobody_waits_for_is_ended_at_the_other_side(join: Join) -> None:
    server, client = join(), join(client_mode=True)

    async def scenario(toy: StubBase) -> None:
        async def endless() -> AsyncIterator[Text]:
            yield Text("1")
            await asyncio.Event().wait()

        answer = await toy.rpc_double(endless())
        assert (await anext(answer)).text == "11"
        answer.close()

    with serving(server) as handler:
        RemoteExpertWorker.run_coroutine(scenario(stub(client, server)))
        assert handler.given_up.wait(LIMIT)


def test_the_calls_of_a_peer_that_is_gone_are_ended(join: Join) -> None:
    server, client = join(), join(client_mode=True)

    async def endless() -> AsyncIterator[Text]:
        yield Text("1")
        await asyncio.Event().wait()

    async def begin(toy: StubBase) -> object:
        answer = await toy.rpc_double(endless())
        await anext(answer)
        return answer

    with serving(server) as handler:
        answer = RemoteExpertWorker.run_coroutine(begin(stub(client, server)))
        client.shutdown()
        assert handler.given_up.wait(LIMIT)
        assert answer is not None


def test_a_peer_that_is_gone_or_was_never_there_fails_the_call(join: Join) -> None:
    server, client = join(), join(client_mode=True)

    with serving(server):
        toy = stub(client, server)
        empty = RemoteExpertWorker.run_coroutine(toy.rpc_join(iter_as_aiter([Text("")]), timeout=LIMIT))
        assert empty.text == ""
    with pytest.raises(CallError, match="protocol not supported"):
        RemoteExpertWorker.run_coroutine(toy.rpc_echo(Text("x"), timeout=LIMIT))
    server.shutdown()
    client.directory.wait_for(lambda view: server.peer_id.key not in view.servers, LIMIT)
    with pytest.raises(CallError, match="not in the swarm"):
        RemoteExpertWorker.run_coroutine(toy.rpc_echo(Text("x"), timeout=LIMIT))


def test_ids_of_peers_are_their_keys() -> None:
    key = Identity.create().public
    assert PeerID.from_base58(key).to_base58() == str(PeerID(key)) == key
    assert sorted([PeerID("b"), PeerID("a")])[0] == PeerID("a")
    with pytest.raises(ValueError, match="no id of a peer"):
        PeerID.from_base58("QmedTaZXmULqwspJXz44SsPZyTNKxhnnFvYRajfH7MGhCY")
