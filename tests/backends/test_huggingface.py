"""What the `transformers` backend promises beyond the interface: little memory, plain failures, quantised weights."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import BackendError, Batch, Options, Row, Span, registry
from tests.backends.chain import CPU, Chain
from tests.backends.conftest import MakeModel
from tests.families import VOCABULARY, make_model, randomise, reference_model, reference_tokens

torch = pytest.importorskip("torch")
transformers = registry.find("transformers")
PROMPT = [(11 * i + 3) % 500 + 5 for i in range(24)]


def test_a_server_needs_only_the_files_of_its_own_blocks(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path, layers=8)
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {shard for name, shard in weight_map.items() if ".layers.3." in name or ".layers.4." in name}
    others = set(weight_map.values()) - needed
    assert others
    x = np.ones((2, 64), np.float32)
    before = transformers.load(folder, Span(3, 5), CPU)
    for shard in others:
        (folder / shard).write_bytes(b"never to be opened")
    after = transformers.load(folder, Span(3, 5), CPU)
    batch = Batch(x, [Row("a", 0, 2)], Span(3, 5))
    np.testing.assert_array_equal(after.forward(batch), before.forward(batch))
    assert after.model == before.model


def test_head_and_tail_in_one_share_tied_embeddings(model_of: MakeModel) -> None:
    folder = model_of("llama_tied")
    info = transformers.describe(folder)
    norm = 4 * 64
    assert info.edge_bytes == (4 * VOCABULARY * 64, 4 * VOCABULARY * 64 + norm)
    whole = transformers.load(folder, Span(0, 6), CPU)
    tail = transformers.load(folder, Span(5, 6), CPU)
    buffers = 4096
    assert whole.memory().weights < sum(info.block_bytes) + info.edge_bytes[1] + buffers
    assert tail.memory().weights < info.block_bytes[5] + info.edge_bytes[1] + buffers


_MEASURE = """
    import gc, re, sys
    from pathlib import Path
    from backends import Options, Span, registry

    def resident():
        gc.collect()
        return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

    backend = registry.find("transformers")
    warm = backend.load(Path(sys.argv[1]), Span(1, 3), Options(device="cpu", dtype="float32"))
    before = resident()
    stage = backend.load(Path(sys.argv[2]), Span(5, 10), Options(device="cpu", dtype="float32"))
    print(resident() - before, stage.memory().weights)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("stored", "family"), [("float32", "llama"), ("bfloat16", "llama"), ("float32", "mixtral")])
def test_a_loaded_span_takes_no_more_memory_than_its_weights(
    tmp_path: Path, model_of: MakeModel, stored: str, family: str
) -> None:
    """Used as they lie in the file, converted from another dtype, or assembled from experts stored one by one."""
    size: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 2560 if family == "llama" else 512}
    folder = make_model(family, tmp_path, layers=10, shard_size="50MB", dtype=getattr(torch, stored), **size)
    weights = 4 * sum(transformers.describe(folder).block_bytes[5:]) // (4 if stored == "float32" else 2)
    assert weights > 100e6
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_MEASURE), str(model_of("llama")), str(folder)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    grown, counted = map(int, done.stdout.split())
    assert weights <= counted < 1.02 * weights + 4e6
    assert grown <= 1.15 * weights + 24e6


def test_a_device_without_room_leaves_all_sessions_as_they_were(
    model_of: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backends.huggingface.cache import Growing

    folder = model_of("llama")
    chain = Chain.load(transformers, folder, (0, 6))
    stage = chain.stages[0]
    chain.step({"a": PROMPT[:20]})
    grow, calls = Growing._grow, []

    def fail_late(layer: Growing, *args: Any) -> None:
        calls.append(layer)
        if len(calls) > 4:
            raise torch.OutOfMemoryError("no room")
        grow(layer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Growing, "_grow", fail_late)
        with pytest.raises(MemoryError, match="cpu has no room for 105 more tokens"):
            stage.forward(Batch(np.arange(5, 110, dtype=np.int32), [Row("a", 20, 5), Row("b", 0, 100)], stage.span))
    with pytest.raises(BackendError, match="has 0 tokens"):
        stage.forward(Batch(np.array([5], np.int32), [Row("b", 100, 1)], stage.span))
    logits = chain.step({"a": PROMPT[20:]})["a"][0]
    with torch.inference_mode():
        expected = reference_model(folder)(torch.tensor([PROMPT])).logits[0, -1].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_a_forward_that_fails_does_not_move_a_running_state(
    model_of: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_of("qwen3_next")
    chain = Chain.load(transformers, folder, (0, 6))
    chain.step({"a": PROMPT[:20]})
    stage: Any = chain.stages[0]
    with monkeypatch.context() as patch:
        patch.setattr("backends.torch_net.device.to_numpy", lambda tensor: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            chain.step({"a": [9, 9, 9]})
    assert stage.sessions["a"].length == 20
    logits = chain.step({"a": PROMPT[20:]})["a"][0]
    with torch.inference_mode():
        expected = reference_model(folder)(torch.tensor([PROMPT])).logits[0, -1].numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_families_are_batched_where_they_can_be(model_of: MakeModel) -> None:
    batched = ["llama", "gemma2", "gpt_oss", "deepseek_v3", "llama4", "longcat"]
    single = ["bloom", "falcon_alibi", "mpt", "mamba"]
    for family in batched + single:
        stage = transformers.load(model_of(family), Span(2, 4), CPU)
        assert stage.batched == (family in batched), family
    rows = [Row("a", 0, 1), Row("b", 0, 1)]
    with pytest.raises(BackendError, match="one session at a time"):
        stage.forward(Batch(np.zeros((2, 64), np.float32), rows, stage.span))


def test_compressed_keys_stay_compressed(model_of: MakeModel) -> None:
    """Multi-head latent attention caches one small latent for all heads."""
    stage = transformers.load(model_of("deepseek_v3"), Span(2, 4), CPU)
    assert stage.kv_bytes_per_token == 2 * 4 * (16 + 8)
    stage.forward(Batch(np.zeros((64, 64), np.float32), [Row("a", 0, 64)], stage.span))
    assert stage.memory().kv == 64 * stage.kv_bytes_per_token


def test_longrope_is_served_up_to_its_original_context(model_of: MakeModel) -> None:
    """Beyond it, all keys that are in the cache would have to be rotated anew."""
    folder = model_of("longrope")
    assert transformers.describe(folder).context_length == 64
    chain = Chain.load(transformers, folder, (0, 3, 6))
    chain.step({"a": PROMPT + PROMPT[:20]})
    chain.step({"a": PROMPT[4:]})
    with pytest.raises(BackendError, match="context of 64"):
        chain.step({"a": [5]})


@pytest.mark.parametrize("kind", ["gemma3", "mistral3"])
def test_the_text_model_of_a_vision_language_model(tmp_path: Path, kind: str) -> None:
    import transformers as library

    size = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    text = {**size, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    image = {"image_size": 28, "patch_size": 14}
    if kind == "gemma3":
        config = library.Gemma3Config(
            text_config={**text, "sliding_window": 8}, vision_config={**vision, **image}, mm_tokens_per_image=4
        )
    else:
        pixtral = {**vision, **image, "model_type": "pixtral", "head_dim": 16}
        config = library.Mistral3Config(text_config={**text, "model_type": "mistral"}, vision_config=pixtral)
    torch.manual_seed(1)
    whole = library.AutoModelForImageTextToText.from_config(config).eval()
    randomise(whole)
    whole.save_pretrained(tmp_path, max_shard_size="200KB")
    chain = Chain.load(transformers, tmp_path, (0, 1, 4))
    with torch.inference_mode():
        expected = whole(input_ids=torch.tensor([PROMPT])).logits[0].numpy()
    logits = chain.step({"a": PROMPT}, {"a": len(PROMPT)})["a"]
    np.testing.assert_allclose(logits, expected, atol=2e-3)


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_quantised_blocks_are_those_of_transformers_itself(tmp_path: Path, method: str) -> None:
    """Block for block what transformers makes with bitsandbytes; near to float32, and a good deal smaller."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    size: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
    folder = make_model("llama", tmp_path, layers=4, spread=0.04, **size)
    ours = Chain.load(transformers, folder, (0, 2, 4), Options(device="cpu", dtype="float32", quantize=method))
    exact = Chain.load(transformers, folder, (0, 2, 4))
    logits = ours.step({"a": PROMPT}, {"a": 24})["a"]
    wanted = exact.step({"a": PROMPT}, {"a": 24})["a"]
    error = np.linalg.norm(logits - wanted) / np.linalg.norm(wanted)
    assert error < {"int8": 0.1, "nf4": 0.4}[method]

    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    settings = BitsAndBytesConfig(**(nf4 if method == "nf4" else {"load_in_8bit": True}))
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=settings, device_map="cpu"
    )
    with torch.inference_mode():
        expected = theirs(torch.tensor([PROMPT])).logits[0].float().numpy()
    np.testing.assert_allclose(logits, expected, atol=0.02 * expected.std())

    info = transformers.describe(folder)
    smaller = {"int8": 0.3, "nf4": 0.2}[method]
    for stage, edge in zip(ours.stages, info.edge_bytes, strict=True):
        blocks = sum(info.block_bytes[stage.span.start : stage.span.end])
        assert stage.memory().weights - edge < smaller * blocks
    assert ours.generate([PROMPT], 8, chunk=24)  # with its own cache, as any other


def test_threads_are_those_that_were_asked_for(model_of: MakeModel) -> None:
    before = torch.get_num_threads()
    try:
        transformers.load(model_of("llama"), Span(0, 1), Options(device="cpu", threads=3))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_stored_dtype_is_the_default(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path, layers=2, dtype=torch.float16)
    stage = transformers.load(folder, Span(0, 1), Options(device="cpu"))
    assert (stage.model.dtype, stage.dtype) == ("float16", "float16")
    assert stage.forward(Batch(np.array([5, 6], np.int32), [Row("a", 0, 2)], stage.span)).dtype == np.float16


@pytest.mark.gpu
def test_a_cuda_device_gives_the_tokens_of_the_cpu(model_of: MakeModel) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for family in ("llama", "gemma2", "deepseek_v3", "mamba"):
        folder = model_of(family)
        chain = Chain.load(transformers, folder, (0, 3, 6), Options(device="cuda", dtype="float32"))
        assert chain.generate([PROMPT, PROMPT[:5]], 12) == [
            reference_tokens(folder, prompt, 12) for prompt in (PROMPT, PROMPT[:5])
        ]
