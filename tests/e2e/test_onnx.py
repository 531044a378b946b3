"""The promises of sessions and of failover again, with every server's span in ONNX Runtime.

The tests are those of the other files, imported: here each server is started with `--backend onnx`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from swarm import SwarmClient
from tests.e2e import programs
from tests.e2e.programs import Swarm
from tests.e2e.test_departures import test_leaving_a_stream_frees_every_hop_within_a_second  # noqa: F401
from tests.e2e.test_failures import (  # noqa: F401
    home,
    llama,
    test_a_server_that_comes_back_resumes_the_stream,
    test_a_server_that_hangs_is_replaced_and_does_no_harm_when_it_goes_on,
    test_a_server_that_is_asked_to_stop_hands_its_sessions_over,
    test_killing_a_server_mid_stream_changes_no_token,
)
from tests.e2e.test_llamacpp import test_servers_whose_spans_overlap_form_a_route  # noqa: F401
from tests.e2e.test_tokens import test_a_server_without_blocks_fills_the_gap  # noqa: F401
from tests.families import VOCABULARY, make_model, reference_tokens

pytest.importorskip("onnxruntime_genai", reason="the extra onnx is not installed")


@pytest.fixture(autouse=True)
def over_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "BACKEND", ("--backend", "onnx"))


@pytest.mark.parametrize("family", ["bloom", "gemma3", "mistral", "qwen3"])
def test_greedy_tokens_equal_generate(family: str, tmp_path: Path, home: Path) -> None:  # noqa: F811
    """In float32: through processes and sockets, one-block spans among them."""
    folder = make_model(family, tmp_path / family)
    ids = [random.Random(family).randrange(5, VOCABULARY) for _ in range(21)]
    with Swarm(home) as swarm:
        swarm.serve(folder, "0:1", "1:4", "4:6")
        with SwarmClient(swarm.token) as client, client.session(family, 100) as session:
            assert list(session.stream(ids, 64)) == reference_tokens(folder, ids, 64)


def test_a_mixed_route_gives_the_same_tokens_and_says_what_computes(llama: Path, home: Path) -> None:  # noqa: F811
    ids = list(range(5, 25))
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:2", "4:6")
        swarm.serve(llama, "2:4", options=["--backend", "transformers"])
        with SwarmClient(swarm.token) as client, client.session("llama", 100) as session:
            assert list(session.stream(ids, 64)) == reference_tokens(llama, ids, 64)
        shown = swarm.start("swarm", "status")
        assert shown.wait_exit() == 0
        table = "\n".join(line for _, line in shown.lines)
        assert table.count("cpu float32 onnx") == 2


def test_quantised_servers_serve_one_model_and_say_so(llama: Path, home: Path) -> None:  # noqa: F811
    """Two precisions of one model may share a route, and what this backend has not is refused by name."""
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:3", options=["--quantize", "int8"])
        swarm.serve(llama, "3:6", options=["--quantize", "int4"])
        with SwarmClient(swarm.token) as client, client.session("llama", 100) as session:
            assert len(list(session.stream(list(range(5, 25)), 8))) == 8
            (model,) = client.models()
        assert [server.quantize for server in model.servers] == ["int8", "int4"]
        wrong = swarm.start("swarm-server", str(llama), "--blocks", "0:3", "--backend", "onnx", "--quantize", "nf4")
        assert wrong.wait_exit() == 1
        assert "the onnx backend has int8 and int4" in wrong.errors
        wrong = swarm.start("swarm-server", str(llama), "--blocks", "0:3", "--backend", "onnx", "--device", "dml")
        assert wrong.wait_exit() == 1
        assert "pip install onnxruntime-directml" in wrong.errors
