"""The promises of sessions and of failover again, with every server's span in llama.cpp.

The tests are those of the other files, imported: here each server is started with `--backend llama_cpp`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from swarm import SwarmClient
from tests.backends.test_llamacpp import needs_library
from tests.e2e import programs
from tests.e2e.programs import Swarm
from tests.e2e.test_departures import test_leaving_a_stream_frees_every_hop_within_a_second  # noqa: F401
from tests.e2e.test_failures import (  # noqa: F401
    home,
    llama,
    test_a_running_stream_needs_no_directory,
    test_a_server_that_comes_back_resumes_the_stream,
    test_a_server_that_hangs_is_replaced_and_does_no_harm_when_it_goes_on,
    test_a_server_that_is_asked_to_stop_hands_its_sessions_over,
    test_closing_a_session_wakes_whoever_waits_for_it,
    test_killing_a_server_mid_stream_changes_no_token,
)
from tests.e2e.test_moves import test_a_gap_is_filled_by_a_server_that_is_one_too_many_elsewhere  # noqa: F401
from tests.e2e.test_tokens import (  # noqa: F401
    test_a_server_without_blocks_fills_the_gap,
    test_async_client_streams_and_stops_without_a_trace,
)
from tests.families import VOCABULARY, make_model, reference_tokens

pytestmark = needs_library


@pytest.fixture(autouse=True)
def over_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "BACKEND", ("--backend", "llama_cpp"))


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral", "phi3", "olmo2"])
def test_greedy_tokens_equal_generate(family: str, tmp_path: Path, home: Path) -> None:  # noqa: F811
    """As stored, in float32: through processes and sockets, one-block spans among them."""
    folder = make_model(family, tmp_path / family)
    ids = [random.Random(family).randrange(5, VOCABULARY) for _ in range(21)]
    with Swarm(home) as swarm:
        swarm.serve(folder, "0:1", "1:4", "4:6")
        with SwarmClient(swarm.token) as client, client.session(family, 100) as session:
            assert list(session.stream(ids, 64)) == reference_tokens(folder, ids, 64)


def test_servers_whose_spans_overlap_form_a_route(llama: Path, home: Path) -> None:  # noqa: F811
    """Neither has a neighbour that begins where it ends; a hop may be a part of a server's span."""
    ids = list(range(5, 25))
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:4", "2:5", "3:6")
        with SwarmClient(swarm.token) as client, client.session("llama", 100) as session:
            assert list(session.stream(ids, 64)) == reference_tokens(llama, ids, 64)


def test_a_mixed_route_gives_the_same_tokens_and_says_what_computes(llama: Path, home: Path) -> None:  # noqa: F811
    """llama.cpp first, then transformers, then whatever `auto` takes."""
    ids = list(range(5, 25))
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:2")
        swarm.serve(llama, "2:4", options=["--backend", "transformers"])
        (third,) = swarm.serve(llama, "4:6", options=["--backend", "auto", "--dtype", "float32"])
        with SwarmClient(swarm.token) as client, client.session("llama", 100) as session:
            assert list(session.stream(ids, 64)) == reference_tokens(llama, ids, 64)
            (model,) = client.models()
        assert "--backend auto: llama_cpp, the fastest" in third.errors
        assert [server.backend for server in model.servers] == ["llama_cpp", "transformers", "llama_cpp"]
        shown = swarm.start("swarm", "status")
        assert shown.wait_exit() == 0
        table = "\n".join(line for _, line in shown.lines)
        assert "cpu float32 llama_cpp" in table


def test_quantised_servers_serve_one_model_and_say_so(llama: Path, home: Path) -> None:  # noqa: F811
    """Two precisions of one model may share a route, and a server that has neither is told what there is."""
    with Swarm(home) as swarm:
        swarm.serve(llama, "0:3", options=["--quantize", "q8_0", "--kv-dtype", "float16"])
        swarm.serve(llama, "3:6", options=["--quantize", "q4_0"])
        with SwarmClient(swarm.token) as client, client.session("llama", 100) as session:
            assert len(list(session.stream(list(range(5, 25)), 8))) == 8
            (model,) = client.models()
        assert [server.quantize for server in model.servers] == ["q8_0", "q4_0"]
        wrong = swarm.start(
            "swarm-server", str(llama), "--blocks", "0:3", "--backend", "llama_cpp", "--quantize", "nf4"
        )
        assert wrong.wait_exit() == 1
        assert "no quantisation 'nf4' in llama.cpp; take q8_0" in wrong.errors


def test_a_library_that_is_missing_is_said_before_a_model_is_looked_for(home: Path) -> None:  # noqa: F811
    with Swarm(home) as swarm:
        swarm.environment["SWARM_LIBLLAMA"] = str(home / "nowhere")
        for command in (("swarm-server",), ("swarm", "up")):
            program = swarm.start(*command, "nobody/nothing", "--backend", "llama_cpp")
            assert program.wait_exit() == 1
            assert "is neither llama.cpp's library nor a folder that holds it" in program.errors
            assert "hub" not in program.errors


def test_a_server_takes_as_many_blocks_as_fit_in_the_precision_that_it_holds_them_in(
    llama: Path,  # noqa: F811
    home: Path,  # noqa: F811
) -> None:
    """The directory decides; an option that the engine lacks is refused before the server joins."""
    with Swarm(home) as swarm:
        (server,) = swarm.serve(llama, "", options=["--quantize", "q4_0"])
        assert "there is memory for" in server.errors
        wrong = swarm.start("swarm-server", str(llama), "--backend", "llama_cpp", "--kv-dtype", "q8_0")
        assert wrong.wait_exit() == 1
        assert "heads whose width is a multiple of 32" in wrong.errors
