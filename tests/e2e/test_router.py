"""Servers that nobody can dial: `swarm-router` and the other programs as real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from routing.relay.rules import is_relayed
from swarm import SwarmClient
from tests.e2e.programs import LIMIT, Swarm
from tests.families import make_model, reference_tokens

IDS = list(range(5, 25))
NOWHERE = ("--advertise", "127.0.0.1:1")  # nobody listens on port 1


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def wait_relayed(client: SwarmClient) -> None:
    """Until every server that is there has registered at a router."""
    client._directory.wait_for(lambda view: all(is_relayed(s.addresses[-1]) for s in view.servers.values()), LIMIT)


def through_a_router(client: SwarmClient) -> set[bool]:
    return {client._driver._dialer.relayed(peer) for peer in client._driver._dialer.peers()}


def test_servers_that_nobody_can_dial_answer_through_a_router(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        router = swarm.start("swarm-router", "--bind", "127.0.0.1:0")
        assert "relays at 127.0.0.1:" in router.wait_line("ready:")
        swarm.serve(llama, "0:3", options=NOWHERE)
        swarm.serve(llama, "3:6", options=["--relayed"])
        with SwarmClient(swarm.token) as client, client.session("llama", 300) as session:
            wait_relayed(client)
            assert list(session.stream(IDS, 64)) == reference_tokens(llama, IDS, 64)
            assert not session.notices
            assert through_a_router(client) == {True}
            assert client.tokenizer("llama") is None  # asked for and answered through the router, too
        router.process.terminate()
        assert router.wait_exit() == 0
        assert "Traceback" not in router.errors


def test_losing_the_router_mid_stream_changes_no_token_where_there_is_another_way(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        router = swarm.start("swarm-router", "--bind", "127.0.0.1:0")
        router.wait_line("ready:")
        swarm.serve(llama, "0:3", "3:6", options=NOWHERE)
        with SwarmClient(swarm.token) as client, client.session("llama", 300) as session:
            wait_relayed(client)
            tokens = []
            for token in session.stream(IDS, 200):
                tokens.append(token)
                if len(tokens) == 20:
                    swarm.serve(llama, "0:3", "3:6")
                    assert through_a_router(client) == {True}
                    router.kill()
            assert tokens == reference_tokens(llama, IDS, 200)
            assert any("was lost" in notice for notice in session.notices)
            assert False in through_a_router(client)


def test_a_router_that_comes_back_is_used_again(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        command = ("swarm-router", "--name", "door", "--bind")
        router = swarm.start(*command, "127.0.0.1:0")
        address = router.wait_line("ready:").split()[-1]
        swarm.serve(llama, "0:6", options=["--relayed"])
        with SwarmClient(swarm.token) as client, client.session("llama", 300) as session:
            wait_relayed(client)
            tokens = []
            for token in session.stream(IDS, 200):
                tokens.append(token)
                if len(tokens) == 20:
                    router.kill()
                    swarm.start(*command, address).wait_line("ready:")
            assert tokens == reference_tokens(llama, IDS, 200)
            assert through_a_router(client) == {True}
