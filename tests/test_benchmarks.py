"""What the benchmarks promise: they run, measure real processes, and say what they have counted. Never a speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends import BackendError
from backends.llamacpp import library
from benchmarks.llama import has_rpc
from tests.families import WIDTH, make_model

ROOT = Path(__file__).parents[1]
FLOAT32 = 4


@pytest.mark.slow
def test_the_ring_is_measured_beside_the_whole_model(tmp_path: Path, swarm_home: Path) -> None:
    model = make_model("llama", tmp_path / "tiny", layers=4)
    figures, picture = tmp_path / "ring.json", tmp_path / "ring.png"
    options = ["--servers", "1,2", "--tokens", "8", "--runs", "1", "--long-prompt", "600", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ring", "--model", model, *options, "--json", figures, "--plot", picture],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout and "round 1 of 1" in done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")

    measured = json.loads(figures.read_text(encoding="utf-8"))
    assert measured["settings"]["long_prompt"] == 511  # the model's context has room for no more
    engines = measured["engines"]
    assert [engine["servers"] for engine in engines] == [0, 0, 1, 2]
    assert engines[0]["ratio"] == engines[1]["ratio_to_stage"] == 1
    for engine in engines:
        processes = max(engine["servers"], 1)
        assert engine["tokens_as_whole"]
        assert len(engine["rates"]) == 1 and engine["rate"] > 0 and engine["ratio"] > 0
        assert engine["first_token"] > 0 and engine["first_token_long"] > 0 and engine["cpu_per_token"] > 0
        for each in ("ready_after", "load_time", "weights", "resident", "unique", "idle_cpu"):
            assert len(engine[each]) == processes, each
        assert all(held < resident for held, resident in zip(engine["weights"], engine["resident"], strict=True))

    whole, _, alone, ring = engines
    assert whole["messages_per_token"] is None
    assert alone["messages_per_token"] == 0  # the tail is the head: the token never leaves the process
    assert ring["messages_per_token"] == ring["servers"]
    assert WIDTH * FLOAT32 < ring["bytes_per_boundary"] < WIDTH * FLOAT32 + 128
    assert 4 < ring["bytes_to_head"] < 128
    assert sum(ring["weights"]) == pytest.approx(whole["weights"][0], rel=0.01)


@pytest.mark.slow
def test_peers_and_limit_measure_what_they_name(tmp_path: Path, swarm_home: Path) -> None:
    try:
        library.find()
    except BackendError as error:
        pytest.skip(str(error))
    model = make_model("llama", tmp_path / "tiny", layers=4)
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"

    def run(module: str, *options: str) -> dict[str, Any]:
        command = [sys.executable, "-m", module, str(model), *options, "--json", str(figures), "--plot", str(picture)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        assert picture.read_bytes().startswith(b"\x89PNG")
        found: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
        return found

    peers = run("benchmarks.peers", "--quantize", "q8_0", "--tokens", "8", "--runs", "1")["peers"]
    names = [peer["name"] for peer in peers]
    assert names[:3] == ["ours, llama_cpp", "ours, llama_cpp, --awake 0", "llama.cpp, one process"]
    with_rpc = ["llama.cpp RPC", "llama.cpp RPC, two servers"] if has_rpc(library.library()) else []
    assert [name for name in names if "RPC" in name] == with_rpc
    assert peers[0]["ours"] == 1 and peers[1]["same_tokens"] and peers[2]["same_tokens"]
    assert all(peer["rate"] > 0 for peer in peers)

    engines = run("benchmarks.limit", "--engines", "llama_cpp:q8_0,transformers:float32", "--tokens", "4")["engines"]
    assert [engine["engine"] for engine in engines] == ["llama_cpp:q8_0", "transformers:float32"]
    assert engines[0]["read"] < 0.4 * engines[1]["read"]
    assert all(0 < engine["share"] < 1 for engine in engines)


def test_a_list_of_servers_that_makes_no_sense_is_refused_at_once() -> None:
    for wrong, why in (("1,x", "list of numbers"), ("0", "at least 1"), ("2,2", "none comes twice")):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.ring", "--servers", wrong], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and why in done.stderr
