"""Servers that chose their span themselves go where they are needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import swarm.server.program as serving
from swarm import SwarmClient
from swarm.server import loading, rebalancing
from swarm.system.process import StopSignal
from tests.e2e.programs import Swarm
from tests.families import make_model, reference_tokens

IDS = list(range(5, 25))


@contextmanager
def server(model: Path, join: str, name: str) -> Iterator[StopSignal]:
    """A server without `--blocks` in a thread; gives what ends it."""
    stop = StopSignal()
    settings = serving.ServerSettings(str(model), join, device="cpu", name=name, threads=1, drain=0)
    thread = threading.Thread(target=serving.serve, args=(settings, stop), name=name)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


def test_a_gap_is_filled_by_a_server_that_is_one_too_many_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(loading, "capacity_of", lambda *arguments: 3)
    monkeypatch.setattr(rebalancing, "EVERY", 1.0)
    monkeypatch.setattr(rebalancing, "SETTLE", 2.0)
    llama = make_model("llama", tmp_path / "llama")
    with Swarm(tmp_path / "home") as swarm, SwarmClient(swarm.token) as client, ExitStack() as servers:

        def spans() -> list[tuple[int, int]]:
            ready = client._directory.view.serving("llama")
            return sorted((each.start, each.end) for each in ready if each.state == "ready")

        stops = {}
        for number in range(3):
            stops[f"s{number}"] = servers.enter_context(server(llama, swarm.token, f"s{number}"))
            client._directory.wait_for(lambda view, count=number + 1: len(spans()) == count, 60)
        assert sorted(set(spans())) == [(0, 3), (3, 6)]
        lone = min(set(spans()), key=spans().count)
        keys = {each.name: (each.start, each.end) for each in client._directory.view.serving("llama")}
        with client.session("llama", 400) as session:
            tokens = []
            for token in session.stream(IDS, 300):
                tokens.append(token)
                if len(tokens) == 20:
                    stops[next(name for name, span in keys.items() if span == lone)].set()
            assert tokens == reference_tokens(llama, IDS, 300)
            assert any("waiting for a server" in notice for notice in session.notices)
        assert spans() == [(0, 3), (3, 6)]
