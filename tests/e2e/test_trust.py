"""What a client can demand of servers that it does not trust."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

import swarm.server.program as serving
from backends import Batch, Span, Stage
from backends.stage import Array
from swarm import BadRequest, SwarmClient, Unavailable
from swarm.server import loading
from swarm.system.process import StopSignal
from tests.e2e.programs import LIMIT, Program, Swarm
from tests.families import make_model, reference_tokens

IDS = list(range(5, 25))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Liar:
    """A stage that gives other hidden states than the model's."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __getattr__(self, name: str) -> object:
        return getattr(self._stage, name)

    def forward(self, batch: Batch) -> Array:
        hidden = self._stage.forward(batch)
        return np.roll(hidden, 1, axis=-1)


@contextmanager
def lying_server(model: Path, join: str, span: Span, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A member that serves the right files and computes something else."""
    load = loading.load
    monkeypatch.setattr(loading, "load", lambda *arguments: Liar(load(*arguments)))
    stop, ready = StopSignal(), threading.Event()
    monkeypatch.setattr(serving, "print_contract_line", lambda line: ready.set())
    settings = serving.ServerSettings(str(model), join, span, device="cpu", name="liar", drain=0)
    thread = threading.Thread(target=serving.serve, args=(settings, stop))
    thread.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        stop.set()
        thread.join()


def test_an_answer_is_checked_against_a_second_server(llama: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Swarm(home) as swarm, SwarmClient(swarm.token) as client:
        swarm.serve(llama, "3:6")
        with lying_server(llama, swarm.token, Span(0, 3), monkeypatch):
            client.wait_complete("llama")
            with client.session("llama", 100) as lied_to:
                with pytest.raises(BadRequest, match="logprobs"):
                    lied_to.verify()
                lies = list(lied_to.stream(IDS, 40, logprobs=0, temperature=0.7, seed=3))
                with pytest.raises(Unavailable, match="second server"):
                    lied_to.verify()
                swarm.serve(llama, "0:3", "3:6")
                client._directory.wait_for(lambda view: len(view.serving("llama")) == 4, 60)
                verdicts = [lied_to.verify() for _ in range(12)]
                assert {verdict.hop.start for verdict in verdicts} == {0, 3}
                for verdict in verdicts:  # the hop that was replaced is the liar, or the liar is there both times
                    assert verdict.agrees == (verdict.hop.start == 3), verdict
        client._directory.wait_for(lambda view: len(view.serving("llama")) == 3, 60)
        swarm.serve(llama, "0:3")
        client._directory.wait_for(lambda view: len(view.serving("llama")) == 4, 60)
        with client.session("llama", 100) as session:
            honest = list(session.stream(IDS, 40, logprobs=0, temperature=0.7, seed=3))
            assert honest != lies
            for _ in range(4):
                verdict = session.verify(window=8)
                assert verdict.agrees and verdict.checked == 8 and verdict.differing == 0


def test_a_gateway_gives_out_no_answer_that_its_servers_disagree_about(
    llama: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"model": "llama", "prompt": IDS, "max_tokens": 24, "temperature": 0.7, "seed": 3, "return_token_ids": True}
    with Swarm(home) as swarm, SwarmClient(swarm.token) as client:
        swarm.serve(llama, "3:6")
        # So many that both hops are replaced at least once.
        gateway = swarm.start("swarm-gateway", "--port", "0", "--verify", "20")
        url = gateway.wait_line("ready:").split()[-1]

        def ask(servers: int) -> httpx.Response:
            """Once the gateway knows of so many."""
            limit = time.monotonic() + LIMIT
            while httpx.get(f"{url}/health").json()["models"][0]["servers"] != servers:
                assert time.monotonic() < limit
            return httpx.post(f"{url}/v1/completions", json=body, timeout=LIMIT)

        with lying_server(llama, swarm.token, Span(0, 3), monkeypatch):
            client.wait_complete("llama")
            alone = ask(2)
            assert alone.status_code == 503 and "second server" in alone.text
            swarm.serve(llama, "0:3", "3:6")
            lied_to = ask(4)
            assert lied_to.status_code == 502 and "do not trust this answer" in lied_to.text
        client._directory.wait_for(lambda view: len(view.serving("llama")) == 3, 60)
        swarm.serve(llama, "0:3")
        trusted = ask(4)
        assert trusted.status_code == 200 and len(trusted.json()["choices"][0]["token_ids"]) == 24


def test_swarm_up_has_its_gateway_check_answers(llama: Path, home: Path) -> None:
    options = ("--servers", "2", "--port", "0", "--no-browser", "--device", "cpu", "--verify", "1")
    program = Program("swarm", "up", str(llama), *options, SWARM_HOME=str(home))
    try:
        url = program.wait_line("ready:").split()[-1]
        refused = httpx.post(f"{url}/v1/completions", json={"model": "llama", "prompt": IDS}, timeout=LIMIT)
        assert refused.status_code == 503 and "no second server" in refused.text
        program.process.terminate()
        assert program.wait_exit() == 0, program.errors
    finally:
        program.kill()


def test_a_private_session_shows_tokens_to_own_servers_only(llama: Path, home: Path, tmp_path: Path) -> None:
    with Swarm(home) as swarm:
        elsewhere = {**swarm.environment, "SWARM_HOME": str(tmp_path / "elsewhere")}
        foreign = [
            Program("swarm-server", str(llama), "--blocks", span, "--device", "cpu", **elsewhere)
            for span in ("0:6", "0:3", "3:6")
        ]
        try:
            for program in foreign:
                program.wait_line("ready:")
            with SwarmClient(swarm.token, private=True) as client:
                client.wait_complete("llama")
                with client.session("llama", 64) as session, pytest.raises(Unavailable, match="of your own") as refused:
                    list(session.stream(IDS, 8))
                assert refused.value.missing == ((0, 1), (5, 6))
                swarm.serve(llama, "0:2", "4:6")
                everybody_ready = lambda view: [s.state for s in view.serving("llama")] == ["ready"] * 5  # noqa: E731
                client._directory.wait_for(everybody_ready, 60)
                own = {server.key for server in client.models()[0].servers if server.end - server.start == 2}
                with client.session("llama", 64) as session:
                    assert list(session.stream(IDS, 32)) == reference_tokens(llama, IDS, 32)
                    route = session.route
                assert {route[0].peer, route[-1].peer} == own and len(route) > 2
        finally:
            for program in foreign:
                program.kill()
