"""Upstream's code as one of the hops of a route, beside servers of other backends."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from swarm import SwarmClient
from tests.families import make_model, reference_tokens
from tests.upstream import petals_python
from tests.windows.programs import Program

PROMPT = [1, 17, 300, 42, 5]
NEW = 24
OPTIONS = ("--dtype", "float32", "--device", "cpu", "--kv-tokens", "1024", "--threads", "1")


def route_tokens(model: Path, cuts: list[int], backends: list[str], home: Path) -> list[int]:
    """Greedy tokens through one server for each span between two cuts."""
    python = {"petals": petals_python()}
    with ExitStack() as running:
        arguments = ("directory", "--bind", "127.0.0.1:0", "--state-dir", str(home / "state"))
        token = running.enter_context(Program("swarm", *arguments)).line("join:")
        servers = []
        for (start, end), backend in zip(pairwise(cuts), backends, strict=True):
            name = f"{backend}-{start}"
            place = ("--blocks", f"{start}:{end}", "--backend", backend, "--name", name)
            environment = {"SWARM_HOME": str(home / name), "SWARM_JOIN": token}
            command = (python.get(backend, sys.executable), "-W", "ignore")
            program = Program("swarm", "server", str(model), *place, *OPTIONS, python=command, **environment)
            servers.append(running.enter_context(program))
        for server in servers:
            server.line("ready:")
        with SwarmClient(token) as client, client.session(model.name, max_length=64) as session:
            tokens = list(session.stream(PROMPT, max_new_tokens=NEW))
            assert [hop.backend for hop in route(client, model.name)] == backends
            return tokens


def route(client: SwarmClient, model: str) -> list[object]:
    servers = client._directory.view.serving(model)
    return sorted(servers, key=lambda server: server.start)  # type: ignore[return-value]


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon_new"])
@pytest.mark.parametrize("backends", [["transformers", "petals", "transformers"], ["petals", "transformers", "petals"]])
def test_upstreams_blocks_and_ours_make_one_route(
    family: str, backends: list[str], tmp_path: Path, swarm_home: Path
) -> None:
    petals_python()
    model = make_model(family, tmp_path / "tiny")
    assert route_tokens(model, [0, 2, 4, 6], backends, tmp_path) == reference_tokens(model, PROMPT, NEW)


@pytest.mark.model
def test_a_real_model_is_served_by_upstreams_code_between_ours(smollm2: Path, tmp_path: Path, swarm_home: Path) -> None:
    petals_python()
    backends = ["transformers", "petals", "transformers"]
    assert route_tokens(smollm2, [0, 10, 20, 30], backends, tmp_path) == reference_tokens(smollm2, PROMPT, NEW)
