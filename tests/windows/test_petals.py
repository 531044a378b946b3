"""Upstream Petals on Windows Python, in one route with our own backend on Windows and on Linux: run by petals.sh."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from routing.directory.directory import Directory
from swarm import SwarmClient
from tests.families import make_model, reference_tokens
from tests.routing.material import running as started
from tests.upstream import NEW, PROMPT, run_client, upstream_servers
from tests.windows.programs import ROOT, Program

WINDOWS = os.environ.get("SWARM_WPY", "")
PETALS = os.environ.get("SWARM_PETALS_WPY", "")
OPTIONS = ("--dtype", "float32", "--device", "cpu", "--kv-tokens", "1024", "--threads", "1")

pytestmark = pytest.mark.skipif(
    not (WINDOWS and PETALS), reason="SWARM_PETALS_WPY is not set: tests/windows/petals.sh sets it"
)


def test_the_patches_fit_and_lock_files_on_windows(tmp_path: Path) -> None:
    done = subprocess.run([PETALS, "-m", "patches", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "patches fit the upstream in Z:" in done.stdout


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon_new"])
def test_one_route_over_windows_upstream_and_linux(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backends `transformers` (Windows), `petals` (upstream's code on Windows), `transformers` (Linux)."""
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "client"))
    model = make_model(family, tmp_path / "tiny")
    with ExitStack() as running:
        arguments = ("directory", "--bind", "127.0.0.1:0", "--state-dir", str(tmp_path / "state"))
        token = running.enter_context(Program("swarm", *arguments)).line("join:")

        def server(python: str, name: str, blocks: str, backend: str) -> Program:
            arguments = ("server", str(model), "--blocks", blocks, "--name", name, "--backend", backend)
            environment = {"SWARM_HOME": str(tmp_path / name), "SWARM_JOIN": token}
            return running.enter_context(Program("swarm", *arguments, *OPTIONS, python=(python,), **environment))

        servers = [
            server(WINDOWS, "windows", "0:2", "transformers"),
            server(PETALS, "windows-petals", "2:4", "petals"),
            server(sys.executable, "linux", "4:6", "transformers"),
        ]
        for each in servers:
            each.line("ready:")
        with SwarmClient(token) as client, client.session(model.name, max_length=64) as session:
            assert list(session.stream(PROMPT, max_new_tokens=NEW)) == reference_tokens(model, PROMPT, NEW)
        assert [each.close_input() for each in servers] == [0] * 3


def test_upstreams_own_server_and_client_run_on_windows(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "tiny")
    with (
        started(Directory("127.0.0.1:0", tmp_path / "directory")) as directory,
        upstream_servers((PETALS,), model, directory.token, tmp_path),
    ):
        said = run_client((PETALS,), model, directory.token, tmp_path)
    assert said["tokens"] == reference_tokens(model, PROMPT, NEW)
