"""What goes wrong is said in one clear line, nothing hangs, and a lost server is replaced."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from routing.security import Identity, JoinToken
from swarm import BadRequest, ClientSession, SwarmClient, SwarmError, Unavailable, UnknownModel
from tests.e2e.programs import Program, Swarm
from tests.families import make_model, reference_tokens

IDS = list(range(5, 25))
NEW = 64


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("victim", [0, 1], ids=["head", "tail"])
def test_killing_a_server_mid_stream_changes_no_token(victim: int, llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:3", "3:6", "0:3", "3:6")
        with SwarmClient(swarm.token) as client, client.session("llama", 300) as session:
            tokens = []
            for token in session.stream(IDS, 200):
                tokens.append(token)
                if len(tokens) == 20:
                    serving(swarm, client, session, victim).kill()
            assert tokens == reference_tokens(llama, IDS, 200)
            assert any("was lost" in notice for notice in session.notices)


def test_a_server_that_comes_back_resumes_the_stream(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        _, tail = swarm.serve(llama, "0:3", "3:6")
        with SwarmClient(swarm.token) as client, client.session("llama", 300) as session:
            tokens = []
            for token in session.stream(IDS, 200):
                tokens.append(token)
                if len(tokens) == 20:
                    tail.kill()
                    swarm.serve(llama, "3:6")
            assert tokens == reference_tokens(llama, IDS, 200)


@pytest.mark.parametrize("victim", [0, 1], ids=["head", "tail"])
def test_a_server_that_is_asked_to_stop_hands_its_sessions_over(victim: int, llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:3", "3:6", "0:3", "3:6")
        with SwarmClient(swarm.token) as client, client.session("llama", 400) as session:
            tokens, leaver = [], None
            for token in session.stream(IDS, 300):
                tokens.append(token)
                if len(tokens) == 20:
                    leaver = serving(swarm, client, session, victim)
                    leaver.process.terminate()
            assert tokens == reference_tokens(llama, IDS, 300)
            assert session.notices == ["a server leaves; moving to another"]
            assert leaver and leaver.wait_exit() == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process by a signal")
@pytest.mark.parametrize("victim", [0, 1], ids=["head", "tail"])
def test_a_server_that_hangs_is_replaced_and_does_no_harm_when_it_goes_on(victim: int, llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:3", "3:6", "0:3", "3:6")
        with SwarmClient(swarm.token) as client, client.session("llama", 400) as session:
            tokens, stopped = [], None
            for token in session.stream(IDS, 300):
                tokens.append(token)
                if len(tokens) == 20:
                    stopped = serving(swarm, client, session, victim)
                    os.kill(stopped.process.pid or 0, signal.SIGSTOP)
                if len(tokens) == 100:
                    assert stopped
                    os.kill(stopped.process.pid or 0, signal.SIGCONT)
            assert tokens == reference_tokens(llama, IDS, 300)
            assert any("was lost" in notice for notice in session.notices)


def serving(swarm: Swarm, client: SwarmClient, session: ClientSession, hop: int) -> Program:
    """The program that serves a hop of the session's route."""
    peer = session.route[hop].peer
    named = {server.key: server.name for model in client.models() for server in model.servers}
    return next(p for p in swarm.servers if f"ready: {named[peer]} " in p.wait_line("ready:"))


def test_a_server_that_is_stopped_properly_says_goodbye(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        servers = swarm.serve(llama, "0:3", "3:6")
        with SwarmClient(swarm.token) as client:
            for server in servers:
                server.process.terminate()
                assert server.wait_exit() == 0
            client._directory.wait_for(lambda view: not view.servers, 60)
            with pytest.raises(UnknownModel, match="'llama'"):
                client.session("llama", 10)


def test_requests_that_cannot_be_served_say_why(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:3", "4:6", options=["--kv-tokens", "200"])
        with SwarmClient(swarm.token) as client:
            with pytest.raises(UnknownModel, match="does not serve 'other'; it serves llama"):
                client.session("other", 10)
            with pytest.raises(BadRequest, match="context of llama, 512"):
                client.session("llama", 513)
            with client.session("llama", 100) as session:
                with pytest.raises(Unavailable, match="3:4") as unavailable:
                    list(session.stream(IDS, 10))
                assert unavailable.value.missing == ((3, 4),)
                with pytest.raises(BadRequest, match="do not fit a session of 100"):
                    list(session.stream(IDS, 90))
            swarm.serve(llama, "3:4", options=["--kv-tokens", "200"])
            client.wait_complete("llama")
            with client.session("llama", 300) as session, pytest.raises(BadRequest, match="300 tokens"):
                list(session.stream(IDS, 10))
            with client.session("llama", 100) as session, pytest.raises(BadRequest, match="vocabulary"):
                list(session.stream([100_000], 10))
            with client.session("llama", 100) as session:
                assert list(session.stream(IDS, 10)) == reference_tokens(llama, IDS, 10)


def test_a_bad_start_is_one_clear_line(llama: Path, home: Path, tmp_path: Path) -> None:
    other = make_model("llama", tmp_path / "other", seed=2)
    empty = tmp_path / "empty"
    shutil.copytree(llama, empty, ignore=shutil.ignore_patterns("*.safetensors*"))
    torn = tmp_path / "torn"
    shutil.copytree(llama, torn)
    index = json.loads((torn / "model.safetensors.index.json").read_text())
    gone = index["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    (torn / gone).unlink()
    wrong_secret = Identity.create()
    with Swarm(home) as swarm, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        right = JoinToken.parse(swarm.token)
        wrong = JoinToken(right.addresses, right.directory, wrong_secret.secret)
        elsewhere = ("--bind", "127.0.0.1:0", "--state-dir", str(tmp_path / "brief"))
        brief = swarm.start("swarm-directory", *elsewhere, "--token-expires", "0")
        late = brief.wait_line("join:").removeprefix("join:").strip()
        swarm.serve(llama, "0:3")
        cases = [
            (["swarm-server", str(llama), "--join", "nonsense"], "not a join token"),
            (["swarm-server", str(llama), "--join", str(wrong), "--name", "stranger"], "refuses this join token"),
            (["swarm-server", str(llama), "--join", late, "--name", "late"], "the join token expired on"),
            (["swarm-server", str(llama), "--blocks", "3:9"], "6 blocks"),
            (["swarm-server", str(llama), "--blocks", "3"], "START:END"),
            (["swarm-server", str(other), "--blocks", "3:6", "--model-name", "llama"], "--model-name"),
            (["swarm-server", str(empty), "--blocks", "3:6"], "safetensors"),
            (["swarm-server", str(torn), "--blocks", "0:3", "--model-name", "torn"], gone),
            (["swarm-server", str(llama), "--bind", f"127.0.0.1:{port}"], f"port {port} on 127.0.0.1 is in use"),
            (["swarm-server", str(llama), "--backend", "cobol"], "transformers"),
            (["swarm-server", "no-such-model"], "no-such-model"),
            (["swarm-gateway", "--port", str(port)], f"{port}"),
            (["swarm-directory", "--bind", f"127.0.0.1:{port}", "--state-dir", str(tmp_path / "d")], f"port {port}"),
            (["swarm-client", "nothing", "hello"], "does not serve 'nothing'; it serves: llama"),
            (["swarm", "status", "--join", "nonsense"], "not a join token"),
            (["swarm", "up", "--servers", "0"], "--servers"),
        ]
        programs = [(swarm.start(*command), command, words) for command, words in cases]
        for program, command, words in programs:
            code = program.wait_exit()
            assert code in (1, 2), (command, program.lines)
            last = program.errors.splitlines()[-1]
            assert last.startswith("Error: ") and words in last, (command, program.errors)
            assert "Traceback" not in program.errors, command


def test_a_dead_directory_is_named_quickly(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        swarm.directory.kill()
        with pytest.raises(SwarmError, match=r"no directory answers|no answer|not reach"):
            SwarmClient(swarm.token, timeout=3)


def test_a_running_stream_needs_no_directory(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:3", "3:6")
        with SwarmClient(swarm.token) as client, client.session("llama", 300) as session:
            tokens = []
            for token in session.stream(IDS, 200):
                tokens.append(token)
                if len(tokens) == 10:
                    swarm.directory.kill()
            assert tokens == reference_tokens(llama, IDS, 200)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process by a signal")
def test_closing_a_session_wakes_whoever_waits_for_it(llama: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        (only,) = swarm.serve(llama, "0:6")
        with SwarmClient(swarm.token) as client, ThreadPoolExecutor() as pool:
            session = client.session("llama", 400)
            session.step(IDS)
            assert only.process.pid
            os.kill(only.process.pid, signal.SIGSTOP)
            try:
                waiting = pool.submit(session.step, IDS)
                client._directory.wait_for(lambda view: not waiting.done(), 10)
                session.close()
                with pytest.raises(SwarmError, match="closed"):
                    waiting.result(60)
            finally:
                os.kill(only.process.pid, signal.SIGCONT)
