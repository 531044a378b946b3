"""How many blocks a machine has room for goes by the precision in which it will hold them, not by what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends import BackendError, Options, Span, registry, system_memory
from swarm.errors import SwarmError
from swarm.server import loading
from swarm.server.program import ServerSettings
from tests.families import make_model

BLOCKS, WIDTH, INNER = 2, 512, 2048
WEIGHTS = 3 * WIDTH * INNER + 3 * WIDTH * WIDTH  # of a block: keys and values have half the width together
KEYS = 2 * WIDTH // 2  # numbers that a token takes in a block's KV cache


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    size = {"hidden_size": WIDTH, "intermediate_size": INNER, "head_dim": WIDTH // 4, "max_position_embeddings": 64}
    return make_model("llama", tmp_path_factory.mktemp("sizes"), layers=BLOCKS, dtype=torch.bfloat16, **size)


CASES = [
    ("transformers", {}, 2, 2),
    ("transformers", {"dtype": "float32"}, 4, 4),
    ("transformers", {"quantize": "int8"}, 1, 2),
    ("transformers", {"quantize": "nf4"}, 0.5625, 2),
    ("llama_cpp", {}, 2, 2),
    ("llama_cpp", {"dtype": "float32"}, 4, 4),
    ("llama_cpp", {"quantize": "q8_0", "kv_dtype": "q8_0"}, 1.0625, 1.0625),
    ("llama_cpp", {"quantize": "q4_0"}, 0.5625, 2),
    ("onnx", {}, 4, 4),
    ("onnx", {"quantize": "int8"}, 1.125, 4),
    ("onnx", {"quantize": "int4"}, 0.625, 4),
]


@pytest.mark.parametrize(("name", "options", "weight", "key"), CASES)
def test_a_span_takes_what_is_said_before_it_is_loaded(
    name: str, options: dict[str, str], weight: float, key: float, model: Path
) -> None:
    try:
        backend = registry.find(name)
    except BackendError as error:
        pytest.skip(str(error))
    if name == "transformers" and "quantize" in options:
        pytest.importorskip("bitsandbytes")
    asked = Options(device="cpu", threads=1, kv_tokens=256, **options)
    info = backend.describe(model, asked)
    assert info.block_bytes == pytest.approx([WEIGHTS * weight] * BLOCKS, rel=0.01)
    assert info.kv_bytes_per_token == KEYS * key
    stage = backend.load(model, Span(0, BLOCKS), asked)
    head, tail = info.edge_bytes
    expected = sum(info.block_bytes) + tail + (0 if name == "onnx" else head)
    assert stage.memory().weights == pytest.approx(expected, rel=0.1)
    assert stage.kv_bytes_per_token == BLOCKS * info.kv_bytes_per_token


def test_a_machine_takes_more_blocks_the_fewer_bits_they_have(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = loading.RESERVE + 30_000_000
    monkeypatch.setattr(system_memory, "available", lambda: free)

    def blocks(**options: str) -> int:
        wishes = ServerSettings("tiny", "", device="cpu", kv_tokens=1, **options)
        info = registry.find(wishes.backend).describe(model, Options(dtype=wishes.dtype, quantize=wishes.quantize))
        return loading.capacity_of(info, wishes, "tiny")

    assert blocks() == (30_000_000 - 2 * 2 * 512 * WIDTH) // (WEIGHTS * 2) == 3
    assert blocks(dtype="float32") == 1
    if not registry_lacks("llama_cpp"):
        assert blocks(backend="llama_cpp", quantize="q4_0") == 13
    free = loading.RESERVE
    with pytest.raises(SwarmError, match="--quantize"):
        blocks()


def registry_lacks(name: str) -> bool:
    try:
        registry.find(name)
    except BackendError:
        return True
    return False
