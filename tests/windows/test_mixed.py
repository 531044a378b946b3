"""One swarm of a Linux and a Windows machine. Needs a Windows Python: `SWARM_WPY` names what setup.sh makes."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from swarm import SwarmClient
from tests.families import make_model, reference_tokens
from tests.windows.programs import Program

WINDOWS = os.environ.get("SWARM_WPY", "")
PROMPT = [1, 17, 300, 42, 5]

pytestmark = pytest.mark.skipif(not WINDOWS, reason="SWARM_WPY is not set: tests/windows/run.sh sets it")


def test_linux_and_windows_give_the_tokens_of_the_whole_model_in_either_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "client"))
    model = make_model("llama", tmp_path / "tiny")
    expected = reference_tokens(model, PROMPT, 24)
    options = ("--dtype", "float32", "--device", "cpu", "--kv-tokens", "1024", "--threads", "1")
    with ExitStack() as running:
        arguments = ("directory", "--bind", "127.0.0.1:0", "--state-dir", str(tmp_path / "state"))
        token = running.enter_context(Program("swarm", *arguments)).line("join:")

        def server(python: str, name: str, blocks: str, part: str) -> Program:
            arguments = ("server", str(model), "--blocks", blocks, "--name", name, "--model-name", part)
            environment = {"SWARM_HOME": str(tmp_path / name), "SWARM_JOIN": token}
            return running.enter_context(Program("swarm", *arguments, *options, python=(python,), **environment))

        servers = [
            server(sys.executable, "linux-head", "0:3", "linux-first"),
            server(WINDOWS, "windows-tail", "3:6", "linux-first"),
            server(WINDOWS, "windows-head", "0:3", "windows-first"),
            server(sys.executable, "linux-tail", "3:6", "windows-first"),
        ]
        for each in servers:
            each.line("ready:")
        with SwarmClient(token) as client:
            for name in ("linux-first", "windows-first"):
                with client.session(name, max_length=64) as session:
                    assert list(session.stream(PROMPT, max_new_tokens=24)) == expected
        assert [each.close_input() for each in servers] == [0] * 4
