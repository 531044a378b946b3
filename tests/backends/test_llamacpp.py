"""What only the backend llama_cpp does: cutting, quantising, GGUF files, and what it refuses."""

from __future__ import annotations

import ctypes
import gc
import json
import shutil
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from backends import BackendError, Batch, Options, Row, Span, artifact_cache, registry
from backends import llamacpp as llama_cpp
from backends.llamacpp import cut, families, layouts, library, precision, resolve, source
from backends.llamacpp.engine import SEQUENCES, LlamaEngine, LlamaModel, chunks
from tests.backends.chain import CPU, Chain
from tests.backends.conftest import MakeModel
from tests.families import make_model, reference_tokens

PROMPTS = [[(7 * i + 3) % 500 + 5 for i in range(20)], [11, 480, 97]]
NEW = 16
CHANGES = {
    "qwen2": {"use_sliding_window": False, "sliding_window": None, "layer_types": ["full_attention"] * 6},
    "mistral": {"sliding_window": None},
    "qwen3_moe": {"mlp_only_layers": [], "norm_topk_prob": True},
}


def is_missing() -> str:
    try:
        library.find()
    except BackendError as error:
        return str(error)
    return ""


needs_library = pytest.mark.skipif(bool(is_missing()), reason=is_missing() or "it is there")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model_of: MakeModel) -> MakeModel:
    """Tiny models, with the few whose usual ones llama.cpp cannot compute made otherwise."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in CHANGES:
            return model_of(family)
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp(family) / family, **CHANGES[family])
        return made[family]

    return folder


def whole_gguf(model: Path, folder: Path, quantize: str | None = None) -> Path:
    """A GGUF file of the whole model."""
    read = resolve.read(model)
    wanted = precision.wanted(read, "auto", quantize)
    made = cut.cut(read, Span(0, read.blocks), wanted, folder, library.library(), 1, lambda done, total: None)
    return made.file


def by_llama_cpp_alone(file: Path, prompt: Sequence[int], new: int) -> list[int]:
    """Greedy tokens of a file that llama.cpp runs as it is."""
    read = resolve.read(file)
    model = LlamaModel(library.library(), str(file), [], read.blocks)
    engine = LlamaEngine(
        model,
        width=read.hidden_size,
        vocabulary=read.vocab_size,
        layer=None,
        marked=True,
        tokens=256,
        threads=1,
        kv="float16",
        offload=False,
    )
    tokens: list[int] = []
    given, at = list(prompt), 0
    while len(tokens) < new:
        wanted = np.arange(len(given)) == len(given) - 1
        positions = np.arange(at, at + len(given), dtype=np.int32)
        logits = engine.run(np.array(given, np.int32), positions, np.int32(0), wanted)
        at += len(given)
        given = [int(logits[0].argmax())]
        tokens += given
    return tokens


@needs_library
@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "qwen3_moe", "granite"])
def test_spans_in_float32_give_hugging_faces_tokens(models: MakeModel, family: str) -> None:
    """The families whose usual test model is refused, and one more."""
    folder = models(family)
    chain = Chain.load(llama_cpp, folder, (0, 1, 4, 6))
    assert chain.generate(PROMPTS, NEW) == [reference_tokens(folder, prompt, NEW) for prompt in PROMPTS]


@needs_library
@pytest.mark.parametrize("quantize", ["q8_0", "q4_0", "q4_k"])
@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen2", "qwen3", "gemma3", "mixtral", "phi3", "olmo2"])
def test_quantised_spans_give_the_tokens_of_llama_cpps_whole_model(
    models: MakeModel, family: str, quantize: str, tmp_path: Path
) -> None:
    folder = models(family)
    file = whole_gguf(folder, tmp_path, quantize)
    expected = by_llama_cpp_alone(file, PROMPTS[0], NEW)
    for cuts in ((0, 3, 6), (0, 1, 4, 6)):
        chain = Chain.load(llama_cpp, folder, cuts, Options(device="cpu", quantize=quantize, cache=tmp_path))
        assert chain.generate(PROMPTS[:1], NEW, chunk=len(PROMPTS[0])) == [expected]


@needs_library
def test_a_gguf_file_is_cut_as_it_is(models: MakeModel, tmp_path: Path) -> None:
    file = whole_gguf(models("llama"), tmp_path, "q8_0")
    info = llama_cpp.describe(file)
    assert (info.blocks, info.hidden_size, info.vocab_size, info.dtype) == (6, 64, 512, "q8_0")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "gguf.json").write_text(json.dumps({"file": str(file)}))
    expected = by_llama_cpp_alone(file, PROMPTS[0], NEW)
    for model in (file, tmp_path / "made"):
        chain = Chain.load(llama_cpp, model, (0, 2, 6), Options(device="cpu", cache=tmp_path / "spans"))
        assert chain.generate(PROMPTS[:1], NEW, chunk=20) == [expected]
        assert [stage.precision for stage in chain.stages] == ["q8_0", "q8_0"]
    with pytest.raises(BackendError, match="quantised already"):
        llama_cpp.load(file, Span(0, 2), Options(device="cpu", quantize="q4_0"))


@needs_library
def test_a_route_may_mix_llama_cpp_with_transformers(models: MakeModel) -> None:
    folder = models("llama")
    transformers = registry.find("transformers")
    expected = [reference_tokens(folder, prompt, NEW) for prompt in PROMPTS]
    for first, second in ((llama_cpp, transformers), (transformers, llama_cpp)):
        chain = Chain([first.load(folder, Span(0, 3), CPU), second.load(folder, Span(3, 6), CPU)])
        assert chain.generate(PROMPTS, NEW) == expected


@needs_library
def test_a_span_holds_what_it_needs_and_is_made_once(models: MakeModel, tmp_path: Path) -> None:
    folder = models("llama")
    read = resolve.read(folder)
    sizes = {}
    for span in (Span(0, 2), Span(2, 4), Span(4, 6)):
        plan = cut.plan(read, span, None)
        sizes[span] = plan.weights
        embedding = sum(piece.nbytes for piece in plan.pieces if piece.name == source.EMBEDDING and piece.source)
        assert (embedding > 0) == (span.start == 0)
    info = read.info()
    assert sizes[Span(2, 4)] == sum(info.block_bytes[2:4])
    assert sizes[Span(0, 2)] == sum(info.block_bytes[:2]) + info.edge_bytes[0]
    assert sizes[Span(4, 6)] == sum(info.block_bytes[4:]) + info.edge_bytes[1]

    steps: list[tuple[int, int]] = []
    options = Options(device="cpu", cache=tmp_path, progress=lambda *step: steps.append(step))
    with ThreadPoolExecutor() as pool:  # two servers that start at once
        list(pool.map(lambda _: llama_cpp.load(folder, Span(2, 4), options), range(2)))
    (made,) = tmp_path.rglob("*.gguf")
    assert not list(tmp_path.rglob("*.tmp"))
    before = made.stat().st_mtime_ns
    steps.clear()
    llama_cpp.load(folder, Span(2, 4), options)
    assert made.stat().st_mtime_ns == before
    assert steps == [(sizes[Span(2, 4)],) * 2]


@needs_library
@pytest.mark.parametrize("family", ["llama", "phi3"])  # phi3 goes by a callback
def test_a_span_that_is_let_go_is_freed_at_once(family: str, models: MakeModel, tmp_path: Path) -> None:
    """A server that moves needs the memory for its next span, and Windows deletes no file that is mapped."""
    stage = llama_cpp.load(models(family), Span(0, 2), Options(device="cpu", cache=tmp_path))
    stage.forward(Batch(np.arange(5, 9, dtype=np.int32), [Row("a", 0, 4)], stage.span))
    engine = weakref.ref(stage._main)
    gc.disable()
    try:
        del stage
        assert engine() is None
    finally:
        gc.enable()
    (kept,) = artifact_cache.entries(tmp_path)
    assert not kept.open


@needs_library
def test_a_full_disk_is_said_and_leaves_nothing_behind(
    models: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(device="cpu", cache=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 30, 1 << 30, 100))
        with pytest.raises(BackendError, match=r"the disk that holds .* is full"):
            llama_cpp.load(models("llama"), Span(0, 2), options)

    def torn(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cut, "_bytes", torn)
        with pytest.raises(BackendError, match="is full"):
            llama_cpp.load(models("llama"), Span(0, 2), options)
    assert not list(tmp_path.rglob("*.gguf")) + list(tmp_path.rglob("*.tmp"))


@needs_library
def test_a_full_kv_cache_refuses_and_changes_nothing(models: MakeModel) -> None:
    loaded = llama_cpp.load(models("llama"), Span(0, 6), Options(device="cpu", dtype="float32", kv_tokens=256))
    assert loaded.kv_tokens == 256
    ids = np.arange(5, 205, dtype=np.int32)
    loaded.forward(Batch(ids, [Row("a", 0, 200)], loaded.span))
    for _ in range(2):
        with pytest.raises(MemoryError, match="--kv-tokens"):
            loaded.forward(Batch(ids[:100], [Row("b", 0, 100)], loaded.span))
    first = loaded.forward(Batch(ids[:40], [Row("b", 0, 40, 1)], loaded.span))
    loaded.free("a")
    again = loaded.forward(Batch(ids[:40], [Row("c", 0, 40, 1)], loaded.span))
    np.testing.assert_allclose(first, again, atol=1e-4)


@needs_library
def test_so_many_sessions_are_kept_apart_and_no_more(models: MakeModel) -> None:
    loaded = llama_cpp.load(models("llama"), Span(0, 6), Options(device="cpu", dtype="float32", kv_tokens=2048))
    rows = [Row(f"s{i}", 0, 1, 1) for i in range(SEQUENCES)]
    ids = np.arange(5, 5 + SEQUENCES, dtype=np.int32)
    together = loaded.forward(Batch(ids, rows, loaded.span))
    with pytest.raises(MemoryError, match="sessions"):
        loaded.forward(Batch(ids[:1], [Row("one more", 0, 1)], loaded.span))
    loaded.free("s7")
    with pytest.raises(MemoryError, match="sessions"):  # room for one of two: neither is taken
        loaded.forward(Batch(ids[:2], [Row("x", 0, 1), Row("y", 0, 1)], loaded.span))
    alone = loaded.forward(Batch(ids[7:8], [Row("again", 0, 1, 1)], loaded.span))
    np.testing.assert_allclose(alone[0], together[7], atol=1e-4)


@needs_library
def test_the_kv_cache_may_be_kept_in_8_bits(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "llama", head_dim=32)
    expected = Chain.load(llama_cpp, folder, (0, 3, 6)).step({"a": PROMPTS[0]}, {"a": 20})["a"]
    chain = Chain.load(llama_cpp, folder, (0, 3, 6), Options(device="cpu", kv_dtype="q8_0"))
    got = chain.step({"a": PROMPTS[0]}, {"a": 20})["a"]
    assert np.abs(got - expected).max() < 0.2 * expected.std()
    plain = llama_cpp.load(folder, Span(0, 3), Options(device="cpu", kv_dtype="float16"))
    assert chain.stages[0].kv_bytes_per_token == plain.kv_bytes_per_token * 17 // 32


@needs_library
def test_what_cannot_be_served_is_refused_by_name(models: MakeModel, tmp_path: Path) -> None:
    llama = models("llama")
    cases = [
        ({"quantize": "nf4"}, "no quantisation 'nf4'"),
        ({"dtype": "int3"}, "no dtype 'int3'"),
        ({"kv_dtype": "q2"}, "no --kv-dtype 'q2'"),
        ({"kv_dtype": "q8_0"}, "multiple of 32"),
        ({"threads": 0}, "at least one thread"),
        ({"device": "cuda:7"}, "no device 'cuda:7'"),
    ]
    for options, words in cases:
        with pytest.raises(BackendError, match=words):
            llama_cpp.load(llama, Span(0, 2), Options(**{"device": "cpu", **options}))
    with pytest.raises(BackendError, match="0:6"):
        llama_cpp.load(llama, Span(4, 7), CPU)
    file = tmp_path / "torn.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(BackendError, match=r"torn\.gguf"):
        llama_cpp.describe(file)
    with pytest.raises(BackendError, match="window of 8 tokens"):
        llama_cpp.describe(make_model("mistral", tmp_path / "mistral"))


def test_without_llama_cpp_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "_PACKAGES", {})
    monkeypatch.delenv(library.VARIABLE, raising=False)
    with pytest.raises(BackendError, match=r"pip install layerswarm\[llama-cpp\]"):
        registry.find("llama_cpp")
    assert "pip install" in str(llama_cpp.refusal(tmp_path, Options()))
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / "nothing.so"))
    with pytest.raises(BackendError, match=library.VARIABLE):
        registry.find("llama_cpp")


def test_an_unknown_layout_of_parameters_is_not_written_to() -> None:
    for layout in layouts.LAYOUTS:
        params = layout()
        for name, value in layouts._DEFAULTS.items():
            setattr(params, name, value)
        data = bytes(params) + bytes(ctypes.sizeof(layouts.Opaque))
        assert type(layouts.fitting(data)) is layout
        assert layouts.fitting(data[4:] + bytes(4)) is None


def test_blocks_that_go_by_their_number_find_it_in_the_file(model_of: MakeModel) -> None:
    if is_missing():
        pytest.skip(is_missing())
    read = resolve.read(model_of("gemma3"))
    whole = read.metadata["gemma3.attention.sliding_window_pattern"].value
    for span in (Span(0, 2), Span(3, 5), Span(2, 6), Span(5, 6)):
        plan = cut.plan(read, span, None)
        windows = plan.metadata["gemma3.attention.sliding_window_pattern"].value
        blocks = span.end - span.start
        assert windows[:blocks] == whole[span.start : span.end]
        assert any(windows)
        assert plan.metadata["gemma3.block_count"].value == len(windows)


def test_packed_rows_are_taken_in_parts_that_fit() -> None:
    assert chunks([1, 1], [1, 1]) == [(0, 2)]
    assert chunks([600], [0]) == [(0, 512), (512, 600)]
    assert chunks([100], [100], 64) == [(0, 64), (64, 100)]
    assert chunks([10, 70, 1], [0, 70, 1]) == [(0, 74), (74, 81)]


def test_families_say_what_llama_cpp_would_compute_otherwise(tmp_path: Path) -> None:
    base = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 512}
    cases = [
        ({"model_type": "mistral", "sliding_window": 8}, "window"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "gelu"),
        ({"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 99}, "99"),
        ({"model_type": "qwen3_moe", "norm_topk_prob": False}, "norm_topk_prob"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [0]}, "no experts"),
        ({"model_type": "cobol"}, "not known here"),
    ]
    for config, words in cases:
        with pytest.raises(BackendError, match=words):
            families.find({**base, **config}, tmp_path)
    assert families.find({**base, "model_type": "mistral", "sliding_window": None}, tmp_path)


def test_rope_is_stretched_as_llama_3_has_it() -> None:
    """The frequencies of transformers' own `llama3` RoPE."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=rope)
    wanted = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    factors = families.FAMILIES["llama"].made(config.to_dict())["rope_freqs.weight"]
    plain = 1 / 500000.0 ** (np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / factors, wanted, rtol=1e-4)
