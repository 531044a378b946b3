"""The commands, as a person at a shell uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.programs import Swarm
from tests.families import make_model


@pytest.mark.model
def test_a_person_can_ask_chat_look_and_measure(smollm2: Path, tmp_path: Path) -> None:
    with Swarm(tmp_path / "home") as swarm:
        swarm.serve(smollm2, "0:15", "15:30", options=["--model-name", "real"])
        question = "What is the capital of France?"
        programs = {
            "run": swarm.start("swarm", "run", "real", question, "--max-new-tokens", "20"),
            "client": swarm.start("swarm-client", "real", "The capital of France is", "--max-new-tokens", "8"),
            "status": swarm.start("swarm", "status"),
            "json": swarm.start("swarm", "status", "--json"),
        }
        for name, program in programs.items():
            assert program.wait_exit() == 0, (name, program.lines)
        said = {name: "\n".join(line for where, line in p.lines if where == "out") for name, p in programs.items()}
        assert "Paris" in said["run"] and "Paris" in said["client"]
        assert "complete" in said["status"] and "15:30" in said["status"]
        (model,) = json.loads(said["json"])["models"]
        assert model["complete"] and model["replicas"] == [1] * 30


def test_bench_measures_a_running_swarm(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "llama")
    with Swarm(tmp_path / "home") as swarm:
        swarm.serve(folder, "0:3", "3:6")
        bench = swarm.start("swarm", "bench", "--tokens", "8", "--runs", "2", "--json")
        assert bench.wait_exit() == 0, bench.lines
        figures = json.loads("\n".join(line for where, line in bench.lines if where == "out"))
        assert figures["model"] == "llama"
        assert len(figures["runs"]) == 2 and all(run["rate"] > 0 for run in figures["runs"])
