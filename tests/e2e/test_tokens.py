"""The swarm gives the tokens of the whole model: real processes and sockets, Hugging Face generate as the judge."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm import AsyncSwarmClient, Notice, SwarmClient
from tests.e2e.programs import Swarm
from tests.families import VOCABULARY, make_model, reference_tokens

NEW = 64
FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "mixtral",
    "gpt2",
    "bloom",
    "falcon",
    "phi3",
    "opt",
)
CUTS = {2: (0, 2, 6), 3: (0, 1, 4, 6), 5: (0, 1, 2, 3, 5, 6)}


def spans(bounds: tuple[int, ...]) -> list[str]:
    return [f"{start}:{end}" for start, end in itertools.pairwise(bounds)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_generate_for_every_cut(family: str, tmp_path: Path, home: Path) -> None:
    folder = make_model(family, tmp_path / family)
    ids = [random.Random(family).randrange(5, VOCABULARY) for _ in range(21)]
    wanted = reference_tokens(folder, ids, NEW)
    for bounds in CUTS.values():
        with Swarm(home) as swarm:
            swarm.serve(folder, *spans(bounds))
            with SwarmClient(swarm.token) as client, client.session(family, len(ids) + NEW) as session:
                assert list(session.stream(ids, NEW)) == wanted, bounds


@pytest.mark.model
def test_the_real_model_in_five_processes_says_what_it_says_in_one(smollm2: Path, tmp_path: Path, home: Path) -> None:
    prompts = {
        "The capital of France is": None,
        "Once upon a time there was a small town near the sea where": None,
    }
    with Swarm(home) as swarm:
        for bounds in ((0, 15, 30), (0, 7, 19, 30), (0, 3, 11, 12, 25, 30)):
            servers = swarm.serve(smollm2, *spans(bounds), options=["--dtype", "float32", "--model-name", "real"])
            with SwarmClient(swarm.token) as client:
                tokenizer = client.tokenizer("real")
                assert tokenizer is not None
                for prompt in prompts:
                    ids = tokenizer.encode(prompt)
                    prompts[prompt] = prompts[prompt] or reference_tokens(smollm2, ids, NEW)
                    with client.session("real", len(ids) + NEW) as session:
                        assert list(session.stream(ids, NEW)) == prompts[prompt], bounds
                assert "Paris" in client.generate("real", "The capital of France is", max_new_tokens=8)
            for server in servers:
                server.process.terminate()
                assert server.wait_exit() == 0, server.errors


@pytest.mark.parametrize("family", ["mistral", "bloom"])
def test_eight_concurrent_sessions_each_get_the_tokens_they_get_alone(family: str, tmp_path: Path, home: Path) -> None:
    folder = make_model(family, tmp_path / family)
    generator = random.Random(8)
    prompts = [[generator.randrange(5, VOCABULARY) for _ in range(length)] for length in (1, 2, 5, 9, 17, 33, 64, 120)]
    lengths = [NEW, 10, 40, 25, NEW, 5, 30, 20]
    with Swarm(home) as swarm:
        swarm.serve(folder, "0:2", "2:6")
        with SwarmClient(swarm.token) as client:
            barrier = threading.Barrier(len(prompts))

            def generate(prompt: list[int], new: int) -> list[int]:
                with client.session(family, 256) as session:
                    barrier.wait()
                    return list(session.stream(prompt, new))

            with ThreadPoolExecutor(len(prompts)) as pool:
                answers = list(pool.map(generate, prompts, lengths))
    assert answers == [reference_tokens(folder, p, n) for p, n in zip(prompts, lengths, strict=True)]


def test_servers_whose_spans_overlap_form_a_route(tmp_path: Path, home: Path) -> None:
    """Neither has a neighbour that begins where it ends; a hop may be a part of a server's span."""
    folder = make_model("gemma3", tmp_path / "gemma3")
    ids = list(range(5, 25))
    with Swarm(home) as swarm:
        swarm.serve(folder, "0:4", "2:5", "3:6")
        with SwarmClient(swarm.token) as client, client.session("gemma3", 100) as session:
            assert list(session.stream(ids, NEW)) == reference_tokens(folder, ids, NEW)


def test_a_server_without_blocks_fills_the_gap(tmp_path: Path, home: Path) -> None:
    folder = make_model("llama", tmp_path / "llama")
    ids = list(range(5, 25))
    with Swarm(home) as swarm:
        swarm.serve(folder, "0:2", "4:6")
        with SwarmClient(swarm.token) as client:
            assert client.models()[0].missing == ((2, 4),)
            (server,) = swarm.serve(folder, "")
            assert "serves blocks" in server.wait_line("ready:")
            client.wait_complete("llama")
            with client.session("llama", 100) as session:
                assert list(session.stream(ids, NEW)) == reference_tokens(folder, ids, NEW)


def test_steps_give_the_logits_of_the_whole_model_wherever_the_position_goes(tmp_path: Path, home: Path) -> None:
    folder = make_model("qwen2", tmp_path / "qwen2")
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def reference(sequence: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return whole(torch.tensor([sequence])).logits[0]

    generator = random.Random(1)
    with Swarm(home) as swarm:
        swarm.serve(folder, "0:3", "3:6")
        with SwarmClient(swarm.token) as client, client.session("qwen2", 200) as session:
            sequence: list[int] = []
            for _ in range(12):
                position = generator.randrange(len(sequence) + 1)
                ids = [generator.randrange(5, VOCABULARY) for _ in range(generator.randrange(1, 20))]
                sequence = [*sequence[:position], *ids]
                session.position = position
                logits = session.step(ids)
                np.testing.assert_allclose(logits, reference(sequence)[position:], atol=2e-3)
            assert session.ids == sequence
            # And from there by the ring.
            assert list(session.stream([7], 12)) == reference_tokens(folder, [*sequence, 7], 12)
            hidden = session.step([9, 10], output="hidden")
            assert hidden.shape == (2, whole.config.hidden_size)


def test_async_client_streams_and_stops_without_a_trace(tmp_path: Path, home: Path) -> None:
    folder = make_model("llama", tmp_path / "llama")
    ids = list(range(5, 25))

    async def use(token: str) -> tuple[list[int], list[int]]:
        async with AsyncSwarmClient(token) as client:
            items = [item async for item in client.stream("llama", ids, NEW)]
            whole = [item.token for item in items if not isinstance(item, Notice)]
            begun = []
            stream = client.stream("llama", ids, 400)
            async for item in stream:
                if not isinstance(item, Notice):
                    begun.append(item.token)
                if len(begun) == 3:
                    break
            await stream.aclose()  # type: ignore[attr-defined]
            client._directory.wait_for(
                lambda view: all(s.load.sessions == 0 and s.load.kv_free == s.kv_tokens for s in view.servers.values()),
                60,
            )
            return whole, begun

    with Swarm(home) as swarm:
        swarm.serve(folder, "0:3", "3:6")
        whole, begun = asyncio.run(use(swarm.token))
    assert whole == reference_tokens(folder, ids, NEW)
    assert begun == whole[:3]
