"""Directories that go away and peers that are thrown out, while answers are made: real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarm import ClientSession, Expelled, SwarmClient, SwarmError
from tests.e2e.programs import Program, Swarm
from tests.families import make_model, reference_tokens

IDS = list(range(5, 25))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def told(swarm: Swarm, *arguments: str) -> str:
    """What a command of `swarm` prints, once it has ended well."""
    program = swarm.start("swarm", *arguments)
    assert program.wait_exit() == 0, program.lines
    return "\n".join(line for name, line in program.lines if name == "out")


def server_of(swarm: Swarm, client: SwarmClient, session: ClientSession, hop: int) -> tuple[str, Program]:
    """The name and the program of the server of a hop."""
    named = {server.key: server.name for model in client.models() for server in model.servers}
    name = named[session.route[hop].peer]
    return name, next(p for p in swarm.servers if f"ready: {name} " in p.wait_line("ready:"))


def test_a_stream_goes_on_while_one_directory_after_the_other_goes_away(
    llama: Path, home: Path, tmp_path: Path
) -> None:
    with Swarm(home) as swarm:
        token = told(swarm, "token", "create", "--directory").strip()
        second = swarm.start(
            "swarm-directory", "--bind", "127.0.0.1:0", "--state-dir", str(tmp_path / "b"), "--join", token
        )
        both = second.wait_line("join:").removeprefix("join:").strip()
        swarm.environment["SWARM_JOIN"] = both
        swarm.serve(llama, "0:3", "3:6")
        with SwarmClient(both) as client, client.session("llama", 300) as session:
            tokens: list[int] = []
            for made in session.stream(IDS, 200):
                tokens.append(made)
                if len(tokens) == 20:
                    swarm.directory.kill()
                    (late,) = swarm.serve(llama, "0:3")
                    client._directory.wait_for(
                        lambda view: [server.state for server in view.servers.values()] == ["ready"] * 3, 60
                    )
                if len(tokens) == 100:
                    second.kill()
                    server_of(swarm, client, session, 0)[1].kill()  # its replica is known from before
            assert tokens == reference_tokens(llama, IDS, 200)
            assert "serves blocks 0:3" in late.wait_line("ready:")


def test_a_server_that_is_expelled_mid_stream_is_replaced_and_stays_out(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:3", "3:6", "0:3", "3:6")
        names = [entry["name"] for entry in json.loads(told(swarm, "peers", "--json"))]
        assert len(set(names)) == len(names)
        with SwarmClient(swarm.token) as client, client.session("llama", 300) as session:
            tokens: list[int] = []
            for made in session.stream(IDS, 200):
                tokens.append(made)
                if len(tokens) == 20:
                    name, bad = server_of(swarm, client, session, 0)
                    said = told(swarm, "expel", name)
                    assert said.startswith(f"expelled {name} (") and "swarm token revoke" in said
            assert tokens == reference_tokens(llama, IDS, 200)
            assert all(server.name != name for model in client.models() for server in model.servers)
        assert bad.wait_exit() == 1
        assert "Error: this machine was expelled from the swarm" in bad.errors
        assert name not in {entry["name"] for entry in json.loads(told(swarm, "peers", "--json"))}


def test_what_belongs_to_an_expelled_client_or_gateway_ends_and_its_room_is_free(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:3", "3:6")
        gateway = swarm.start("swarm-gateway", "--port", "0")
        gateway.wait_line("ready:")
        with SwarmClient(swarm.token, name="watcher") as watcher, SwarmClient(swarm.token) as client:
            watch = watcher._directory.wait_for
            with client.session("llama", 300) as session:
                session.step(IDS)
                watch(lambda view: all(server.load.sessions == 1 for server in view.servers.values()), 60)
                told(swarm, "expel", "client-1")
                watch(
                    lambda view: all(
                        s.load.sessions == 0 and s.load.kv_free == s.kv_tokens for s in view.servers.values()
                    ),
                    60,
                )
                with pytest.raises(Expelled, match="ask who runs it for a new join token"):
                    session.step(IDS)
            told(swarm, "expel", "gateway-1")
            assert gateway.wait_exit() == 1
            assert "Error: this machine was expelled from the swarm" in gateway.errors
        with pytest.raises(SwarmError, match="it was expelled from the swarm"):
            SwarmClient(swarm.token)
