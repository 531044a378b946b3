"""One swarm of a Linux and a Windows machine. Needs a Windows Python: `SWARM_WPY` names what setup.sh makes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from swarm import SwarmClient
from tests.families import make_model, reference_tokens
from tests.windows.programs import PATIENCE, Program

openai = pytest.importorskip("openai", reason="Windows Python has it not: these run on Linux")
WINDOWS = os.environ.get("SWARM_WPY", "")
PROMPT = [1, 17, 300, 42, 5]
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
ALIKE = ("--dtype", "float32", "--device", "cpu", "--kv-tokens", "1024", "--threads", "1")

pytestmark = pytest.mark.skipif(not WINDOWS, reason="SWARM_WPY is not set: tests/windows/run.sh sets it")


class Swarm:
    """A directory on Linux, and programs of either system."""

    def __init__(self, running: ExitStack, folder: Path) -> None:
        self._running = running
        self._folder = folder
        self.token = ""
        directory = self.start(
            sys.executable, "directory", "--bind", "127.0.0.1:0", "--state-dir", str(folder / "state")
        )
        self.token = directory.line("join:")

    def start(self, python: str, *arguments: str, module: str = "swarm") -> Program:
        home = self._folder / ("windows" if python == WINDOWS else "linux")
        environment = {"SWARM_HOME": str(home), "SWARM_JOIN": self.token}
        return self._running.enter_context(Program(module, *arguments, python=(python,), **environment))

    def serve(self, python: str, model: Path, blocks: str, name: str, *options: str) -> Program:
        """A server that need not be ready yet."""
        return self.start(python, "server", str(model), "--blocks", blocks, "--model-name", name, *ALIKE, *options)


@pytest.fixture
def swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Swarm]:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "client"))
    with ExitStack() as running:
        yield Swarm(running, tmp_path)


def assert_a_loss_changes_no_token(swarm: Swarm, model: Path, head: Program, system: str, blocks: str) -> None:
    """Kill the head of the only route mid-stream, once a replica runs on `system`."""
    with SwarmClient(swarm.token) as client, client.session("tiny", max_length=300) as session:
        list(session.stream(PROMPT, max_new_tokens=2))  # the route goes over the only servers there are, and stays
        servers = len(client.view.serving("tiny"))
        swarm.serve(system, model, blocks, "tiny").line("ready:")
        client._directory.wait_for(lambda view: len(view.serving("tiny")) == servers + 1, PATIENCE)
        lost = session.route[0].peer
        session.position = 0
        tokens = []
        for token in session.stream(PROMPT, max_new_tokens=200):
            tokens.append(token)
            if len(tokens) == 20:
                assert session.route[0].peer == lost
                head.process.kill()
        assert tokens == reference_tokens(model, PROMPT, 200)
        assert session.route[0].peer != lost
        assert any("was lost" in notice for notice in session.notices)


@pytest.mark.parametrize(
    ("systems", "replica"),
    [((WINDOWS, sys.executable), sys.executable), ((sys.executable, WINDOWS), WINDOWS)],
    ids=["windows-dies", "linux-dies"],
)
def test_a_replica_on_the_other_system_takes_over_from_a_head_that_is_killed_mid_stream(
    systems: tuple[str, str], replica: str, swarm: Swarm, tmp_path: Path
) -> None:
    """The first tokens come from both systems in one route, in either order."""
    model = make_model("llama", tmp_path / "tiny")
    spans = ("0:3", "3:6")
    first = [swarm.serve(system, model, span, "tiny") for system, span in zip(systems, spans, strict=True)]
    for each in first:
        each.line("ready:")
    assert_a_loss_changes_no_token(swarm, model, first[0], replica, spans[0])


def test_three_engines_on_two_systems_share_a_route_and_the_loss_of_one_changes_no_token(
    swarm: Swarm, tmp_path: Path
) -> None:
    """llama.cpp and transformers on Windows and Linux, ONNX Runtime on Linux; then transformers in llama.cpp's place.

    ONNX Runtime starts four times slower in Wine, and `test_swarm_windows.py` has it there.
    """
    model = make_model("llama", tmp_path / "tiny")
    first = swarm.serve(WINDOWS, model, "0:2", "tiny", "--backend", "llama_cpp")
    others = [
        swarm.serve(sys.executable, model, "2:4", "tiny"),
        swarm.serve(sys.executable, model, "4:6", "tiny", "--backend", "onnx"),
    ]
    for each in (first, *others):
        each.line("ready:")
    with SwarmClient(swarm.token) as client:
        (served,) = client.models()
    assert [server.backend for server in served.servers] == ["llama_cpp", "transformers", "onnx"]
    assert_a_loss_changes_no_token(swarm, model, first, sys.executable, "0:2")


@pytest.mark.model
def test_a_real_model_in_llama_cpp_on_windows_gives_the_tokens_of_the_whole_model(swarm: Swarm, smollm2: Path) -> None:
    """Two servers, in float32."""
    spans = ("0:15", "15:30")
    for server in [swarm.serve(WINDOWS, smollm2, span, "real", "--backend", "llama_cpp") for span in spans]:
        server.line("ready:")
    with SwarmClient(swarm.token) as client, client.session("real", max_length=64) as session:
        assert list(session.stream(PROMPT, max_new_tokens=24)) == reference_tokens(smollm2, PROMPT, 24)


@pytest.mark.model
def test_windows_answers_openai_clients_with_a_real_model_as_linux_does(swarm: Swarm, smollm2: Path) -> None:
    """Gateway, both servers and the command line on Windows; directory and OpenAI client on Linux."""
    servers = [swarm.serve(WINDOWS, smollm2, span, "smollm2") for span in ("0:15", "15:30")]
    gateway = swarm.start(WINDOWS, "--port", "0", module="openai_api")
    for each in servers:
        each.line("ready:")
    url = gateway.line("ready:")
    with SwarmClient(swarm.token) as client, client.session("smollm2", max_length=64) as session:
        assert list(session.stream(PROMPT, max_new_tokens=24)) == reference_tokens(smollm2, PROMPT, 24)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as asking:
        answer = asking.chat.completions.create(model="smollm2", messages=QUESTION, temperature=0)
        assert answer.choices[0].message.content == ANSWER
        pieces = asking.chat.completions.create(model="smollm2", messages=QUESTION, temperature=0, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == ANSWER
    asked = swarm.start(WINDOWS, "run", "SmolLM2", QUESTION[0]["content"])
    assert asked.finish() == 0, asked.errors
    assert asked.output == [ANSWER]
    assert [each.close_input() for each in (gateway, *servers)] == [0] * 3
