"""The directory in the DHT's place."""

from __future__ import annotations

import pytest

from patches.network.dht import advertised, bind_address, block_of, join_token
from routing.directory.directory import Directory
from routing.security import JoinToken
from tests.patches.conftest import Join

LIMIT = 60.0  # s; only a test that fails waits so long
INFO = {
    "start_block": 1,
    "end_block": 3,
    "public_name": "box",
    "version": "2.2.0.post1",
    "inference_rps": 120.0,
    "torch_dtype": "float32",
    "quant_type": "none",
    "cache_tokens_left": 4096,
    "next_pings": {"somebody": 0.1},
}
UIDS = ["m.0", "m.1", "m.2", "m.3"]


def test_what_a_server_stores_a_client_finds(join: Join) -> None:
    server, client = join(), join(client_mode=True)
    key = server.peer_id.key
    server.describe(blocks=4, hidden_size=64, context_length=512)

    def store(state: int) -> dict[str, bool]:
        async def run(dht: object, node: object) -> dict[str, bool]:
            values = [(state, 1.0, INFO)] * 2
            return await node.store_many(UIDS[1:3], [key] * 2, values, expiration_time=0.0)  # type: ignore[attr-defined,no-any-return]

        return server.run_coroutine(run)  # type: ignore[no-any-return]

    def found() -> dict[str, object]:
        async def run(dht: object, node: object) -> dict[str, object]:
            return await node.get_many(UIDS, 0.0)  # type: ignore[attr-defined,no-any-return]

        return client.run_coroutine(run)  # type: ignore[no-any-return]

    assert store(1) == {"m.1": True, "m.2": True}
    client.directory.wait_for(lambda view: key in view.servers, LIMIT)
    assert found()["m.1"].value[key].value[0] == 1  # type: ignore[attr-defined]
    store(2)
    client.directory.wait_for(lambda view: view.servers[key].state == "ready", LIMIT)
    servers = found()
    assert servers["m.0"] is None
    assert servers["m.3"] is None
    state, throughput, info = servers["m.2"].value[key].value  # type: ignore[attr-defined]
    assert (state, throughput) == (2, 120.0)
    kept = INFO.keys() - {"next_pings"}
    assert {name: info[name] for name in kept} == {name: INFO[name] for name in kept}
    described = client.directory.view.servers[key]
    assert (described.protocol, described.model, described.blocks, described.hidden_size) == ("petals", "m", 4, 64)
    store(0)
    client.directory.wait_for(lambda view: key not in view.servers, LIMIT)


def test_a_server_that_ends_is_out_of_the_directory(join: Join) -> None:
    server, client = join(), join(client_mode=True)
    server.describe(blocks=4, hidden_size=64, context_length=512)
    server.announce("m", (2, 1.0, INFO))
    client.directory.wait_for(lambda view: server.peer_id.key in view.servers, LIMIT)
    server.shutdown()
    assert not server.is_alive()
    server.shutdown()
    client.directory.wait_for(lambda view: server.peer_id.key not in view.servers, LIMIT)


def test_the_join_token_is_found_among_the_peers_or_in_the_environment() -> None:
    public = "/dns/bootstrap1.example.org/tcp/31337/p2p/Qm"
    assert join_token([public, "swarm1:a"], {"SWARM_JOIN": "swarm1:b"}) == "swarm1:a"
    assert join_token([public], {"SWARM_JOIN": "swarm1:b"}) == "swarm1:b"
    with pytest.raises(ValueError, match="SWARM_JOIN"):
        join_token([public], {})


def test_addresses_are_read_from_upstreams_way_to_write_them(directory: Directory) -> None:
    here = directory.token
    there = JoinToken(("192.0.2.1:7700",), here.directory, here.secret)
    either = ["/ip4/0.0.0.0/tcp/31337", "/ip6/::/tcp/31337"]
    assert bind_address(either, here) == "127.0.0.1:31337"
    assert bind_address(either, there) == "0.0.0.0:31337"
    assert bind_address(["/ip4/192.0.2.7/tcp/0"], here) == "192.0.2.7:0"
    assert bind_address([], there) == "0.0.0.0:0"
    assert advertised(["/ip4/192.0.2.7/tcp/31337", "/dns/box.example.org/tcp/1/p2p/Qm", "/ip6/::/udp/1"]) == [
        "192.0.2.7:31337",
        "box.example.org:1",
    ]


def test_only_blocks_are_stored() -> None:
    assert block_of("tiny-llama-hf.12") == ("tiny-llama-hf", 12)
    with pytest.raises(ValueError, match="no block"):
        block_of("_petals.models")
