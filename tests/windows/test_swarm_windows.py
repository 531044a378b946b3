"""The programs as a user starts them, on Windows and everywhere else: real processes, sockets and weights."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from backends import BackendError, registry
from routing.security import Identity, JoinToken
from swarm import SwarmClient
from tests.families import make_model, reference_tokens
from tests.windows.programs import Program

BLOCKS = 6
PROMPT = [1, 17, 300, 42, 5]


@dataclass
class Swarm:
    home: Path
    model: Path
    token: str
    directory: Program
    servers: list[Program]

    def program(self, *arguments: str, join: str | None = None, home: Path | None = None) -> Program:
        return Program("swarm", *arguments, SWARM_HOME=str(home or self.home), SWARM_JOIN=join or self.token)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """A directory and two servers, each with half of a small llama."""
    # A user's folder has spaces and letters of any language in its name.
    folder = tmp_path_factory.mktemp("swarm") / "Jürgen Ω"
    home = folder / "home"
    model = make_model("llama", folder / "tiny", layers=BLOCKS)
    with ExitStack() as running:
        arguments = ("directory", "--bind", "127.0.0.1:0", "--state-dir", str(folder / "state"))
        directory = running.enter_context(Program("swarm", *arguments, SWARM_HOME=str(home)))
        swarm = Swarm(home, model, directory.line("join:"), directory, [])
        options = ("--dtype", "float32", "--device", "cpu", "--kv-tokens", "1024", "--threads", "1")
        for span in ("0:3", "3:6"):
            server = swarm.program("server", str(model), "--blocks", span, *options)
            swarm.servers.append(running.enter_context(server))
        for server in swarm.servers:
            server.line("ready:")
        yield swarm


def test_two_servers_give_the_tokens_of_the_whole_model(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_HOME", str(swarm.home))
    with SwarmClient(swarm.token) as client, client.session("tiny", max_length=64) as session:
        tokens = list(session.stream(PROMPT, max_new_tokens=24))
    assert tokens == reference_tokens(swarm.model, PROMPT, 24)


@pytest.mark.parametrize("backend", ["llama_cpp", "onnx"])
def test_spans_in_other_engines_give_the_tokens_of_the_whole_model(
    backend: str, swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut or compiled below a home whose name has blanks and letters of any language."""
    try:
        registry.find(backend)
    except BackendError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("SWARM_HOME", str(swarm.home))
    options = ("--backend", backend, "--model-name", backend, "--kv-tokens", "1024", "--threads", "1")
    with ExitStack() as running:
        servers = [
            running.enter_context(swarm.program("server", str(swarm.model), "--blocks", span, *options))
            for span in ("0:2", "2:6")
        ]
        for server in servers:
            server.line("ready:")
        with SwarmClient(swarm.token) as client, client.session(backend, max_length=64) as session:
            tokens = list(session.stream(PROMPT, max_new_tokens=24))
    assert tokens == reference_tokens(swarm.model, PROMPT, 24)


def test_status_lists_both_servers_for_programs_and_for_people(swarm: Swarm) -> None:
    with swarm.program("status", "--json") as status:
        assert status.finish() == 0, status.errors
        (model,) = json.loads("\n".join(status.output))["models"]
    assert (model["name"], model["complete"], model["replicas"]) == ("tiny", True, [1] * BLOCKS)
    assert [(server["start"], server["end"], server["state"]) for server in model["servers"]] == [
        (0, 3, "ready"),
        (3, 6, "ready"),
    ]
    with swarm.program("status") as status:
        assert status.finish() == 0, status.errors
    assert any("complete" in line for line in status.output)


@pytest.mark.parametrize("command", [("status",), ("server", "tiny")], ids=["status", "server"])
def test_a_token_that_is_not_one_ends_with_one_line(swarm: Swarm, command: tuple[str, ...]) -> None:
    arguments = [str(swarm.model) if argument == "tiny" else argument for argument in command]
    for wrong, says in (("tomorrow", "not a join token"), (swarm.token[:-5], "damaged")):
        with swarm.program(*arguments, join=wrong) as program:
            assert program.finish() == 1
        assert len(program.errors) == 1 and says in program.errors[0], program.errors
        assert program.output == []


def test_a_token_that_the_directory_does_not_know_ends_with_one_line(swarm: Swarm, tmp_path: Path) -> None:
    mine = JoinToken.parse(swarm.token)
    other = JoinToken(mine.addresses, mine.directory, Identity.create().secret)
    with swarm.program("status", join=str(other), home=tmp_path) as program:  # a member needs no token any more
        assert program.finish() == 1
    assert len(program.errors) == 1 and "token" in program.errors[0], program.errors


def test_a_port_in_use_ends_with_one_line(swarm: Swarm) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        directory = ("directory", "--state-dir", str(swarm.home / "other"), "--bind", where)
        server = ("server", str(swarm.model), "--blocks", "0:3", "--bind", where)
        for arguments in (directory, server):
            with swarm.program(*arguments) as program:
                assert program.finish() == 1
            said = [line for line in program.errors if line.startswith("Error:")]
            assert len(said) == 1 and "in use" in said[0], program.errors
            assert "Traceback (most recent call last):" not in program.errors


def test_programs_end_with_their_parent_and_leave_nothing_running(swarm: Swarm) -> None:
    """The last test of the file: it ends the swarm."""
    programs = [*swarm.servers, swarm.directory]
    processes = [psutil.Process(program.process.pid) for program in programs]
    processes += [child for process in processes for child in process.children(recursive=True)]
    server, *rest = programs
    assert server.close_input() == 0, server.errors
    with swarm.program("status", "--json") as status:
        assert status.finish() == 0, status.errors
        (model,) = json.loads("\n".join(status.output))["models"]
    assert model["missing"] == [[0, 3]]  # it said goodbye: nobody waits for its lease to run out
    assert [program.close_input() for program in rest] == [0, 0]
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    for program in programs:
        assert not any("Traceback" in line for line in program.errors), program.errors
