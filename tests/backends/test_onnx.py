"""What only the backend onnx does: compiling, quantising, places for keys and values, and what it refuses."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from backends import BackendError, Batch, Options, Row, Span, registry
from tests.backends.chain import CPU, Chain
from tests.backends.conftest import MakeModel, run_on_demand
from tests.families import FAMILIES, make_model, reference_tokens

pytest.importorskip("onnxruntime_genai", reason="the extra onnx is not installed")

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from backends.ort import devices, families, graphs
from backends.ort.engine import CHUNK, _runs
from backends.ort.kv_cache import LEAST_ROOM, SLOTS, SlotPool

onnx = registry.find("onnx")
PROMPTS = [[(7 * i + 3) % 500 + 5 for i in range(20)], [11, 480, 97]]
NEW = 16
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
TOLERANCES = [("int8", 0.04), ("int4", 0.4)]  # for half of the logits, in their standard deviation
ALWAYS = {"falcon", "gpt_oss"}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
        ("nemotron", {"head_dim": 32}),
        ("qwen2", {"rope_parameters": LINEAR}),
        ("mistral", {"sliding_window": None, "head_dim": 32}),
        ("llama", {"rope_parameters": YARN}),  # which the builder does not know
    ],
)
def test_variants_of_a_family_give_hugging_faces_tokens(
    family: str, changes: dict[str, object], tmp_path: Path
) -> None:
    """Those that the conformance suite's models do not have."""
    folder = make_model(family, tmp_path / family, **changes)
    chain = Chain.load(onnx, folder, (0, 1, 4, 6))
    assert chain.generate(PROMPTS, NEW) == [reference_tokens(folder, prompt, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
@pytest.mark.parametrize(("quantize", "tolerance"), TOLERANCES)
def test_quantised_spans_come_near_and_do_not_depend_on_the_cut(
    model_of: MakeModel, family: str, quantize: str, tolerance: float, tmp_path: Path
) -> None:
    folder = model_of(family)
    options = Options(device="cpu", quantize=quantize, cache=tmp_path)
    expected = Chain.load(registry.find("transformers"), folder, (0, 6)).step({"a": PROMPTS[0]}, {"a": 20})["a"]
    whole = Chain.load(onnx, folder, (0, 6), options)
    logits = whole.step({"a": PROMPTS[0]}, {"a": 20})["a"]
    assert np.median(np.abs(logits - expected)) < tolerance * expected.std()
    tokens = whole.generate(PROMPTS, NEW)
    for cuts in ((0, 3, 6), (0, 1, 2, 6)):
        chain = Chain.load(onnx, folder, cuts, options)
        assert {stage.precision for stage in chain.stages} == {quantize}
        assert chain.generate(PROMPTS, NEW) == tokens


def exported() -> list[str]:
    """Families of the tests whose blocks are exported whatever their settings."""
    classes = {name: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config(2).model_type] for name, config in FAMILIES.items()}
    return [name for name, known in classes.items() if known in families.EXPORTED - set(families.FAMILIES)]


@pytest.mark.parametrize("family", exported())
def test_quantised_blocks_that_torch_exports_come_near_too(family: str, tmp_path: Path) -> None:
    if family not in ALWAYS:
        run_on_demand()
    folder = make_model(family, tmp_path / "model", layers=2)
    expected = Chain.load(registry.find("transformers"), folder, (0, 2)).step({"a": PROMPTS[0]}, {"a": 20})["a"]
    for quantize, tolerance in TOLERANCES:
        options = Options(device="cpu", quantize=quantize, cache=tmp_path / quantize)
        whole, cut = (Chain.load(onnx, folder, cuts, options) for cuts in ((0, 2), (0, 1, 2)))
        logits = whole.step({"a": PROMPTS[0]}, {"a": 20})["a"]
        assert np.median(np.abs(logits - expected)) < tolerance * expected.std()
        assert cut.generate(PROMPTS, NEW) == whole.generate(PROMPTS, NEW)
        if whole.stages[0].model.architecture in families.EXPERTS:
            assert any(b"QMoE" in file.read_bytes() for file in options.cache.rglob("block-*.onnx"))


def test_a_route_may_mix_onnx_with_transformers(model_of: MakeModel) -> None:
    folder = model_of("llama")
    transformers = registry.find("transformers")
    expected = [reference_tokens(folder, prompt, NEW) for prompt in PROMPTS]
    for first, second in ((onnx, transformers), (transformers, onnx)):
        chain = Chain([first.load(folder, Span(0, 3), CPU), second.load(folder, Span(3, 6), CPU)])
        assert chain.generate(PROMPTS, NEW) == expected


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_many_sessions_share_a_step_and_grow_out_of_their_places(model_of: MakeModel, family: str) -> None:
    """More sessions than a board has places, of very different lengths; some leave and others take their places."""
    folder = model_of(family)
    chain = Chain.load(onnx, folder, (0, 3, 6))
    lengths = [1, 250, 3, 400, 17, 255, 2, 130, 9, 30, 5, 256]
    prompts = {str(n): [(n * 31 + i * 7) % 500 + 5 for i in range(n)] for n in lengths}
    chain.step(prompts)
    for gone in ("3", "17", "9", "30"):
        chain.free(gone)
        del prompts[gone]
    prompts["40"] = [7] * 40
    chain.step({"40": prompts["40"]})
    for step in range(8):
        together = chain.step({session: [9 + step] for session in prompts})
        for ids in prompts.values():
            ids.append(9 + step)
    for session, ids in prompts.items():
        alone = chain.step({f"{session} alone": ids})[f"{session} alone"]
        np.testing.assert_allclose(together[session], alone, atol=1e-3)


def test_a_prompt_longer_than_a_chunk_and_a_step_of_it_are_the_same(tmp_path: Path) -> None:
    folder = make_model("llama", tmp_path / "llama", max_position_embeddings=2048)
    ids = [(i * 37) % 500 + 5 for i in range(CHUNK + 70)]
    chain = Chain.load(onnx, folder, (0, 6))
    whole = chain.step({"a": ids})["a"]
    chain.step({"b": ids[:300]})
    np.testing.assert_allclose(chain.step({"b": ids[300:]})["b"], whole, atol=1e-3)
    chain.truncate("b", 100)
    np.testing.assert_allclose(chain.step({"b": ids[100:]})["b"], whole, atol=1e-3)


def test_places_hold_sessions_apart_and_give_their_memory_back() -> None:
    pool = SlotPool(devices.find("cpu"), 2, ((2, 8), (1, 4)))
    slots = [pool.acquire(10) for _ in range(SLOTS + 1)]
    assert [slot.index for slot in slots] == [*range(SLOTS), 0]
    assert len(pool.slabs) == 2
    assert pool.nbytes() == (SLOTS + 1) * LEAST_ROOM * pool.token_bytes
    slots[3].length = 200
    pool.grow(slots[3], LEAST_ROOM - 1)
    assert slots[3].slab is slots[0].slab
    pool.grow(slots[3], LEAST_ROOM)  # a place is never quite full
    assert slots[3].slab.room == 2 * LEAST_ROOM
    assert pool.acquire(10).index == 3
    for slot in slots:
        pool.release(slot)
    assert len(pool.slabs) == 1


def test_a_session_leaves_nothing_that_harms_the_next(model_of: MakeModel) -> None:
    """Attention of exported blocks reads the whole place and masks it; what is no number would come through."""
    stage = onnx.load(model_of("bloom"), Span(3, 4), CPU)
    x = np.random.default_rng(1).normal(size=(5, stage.model.hidden_size)).astype(np.float32)
    expected = stage.forward(Batch(x, [Row("a", 0, 5)], stage.span))
    broken = np.concatenate([x, np.full_like(x, np.nan)])
    stage.forward(Batch(broken, [Row("b", 0, 10)], stage.span))
    stage.truncate("b", 2)
    stage.free("b")
    np.testing.assert_array_equal(stage.forward(Batch(x, [Row("c", 0, 5)], stage.span)), expected)


def test_neighbours_run_together() -> None:
    assert list(_runs([4])) == [(4, 5)]
    assert list(_runs([0, 1, 2])) == [(0, 3)]
    assert list(_runs([0, 3, 7])) == [(0, 4), (7, 8)]


def test_blocks_are_compiled_once_whoever_asks(model_of: MakeModel, tmp_path: Path) -> None:
    folder = model_of("llama")
    steps: list[tuple[int, int]] = []
    options = Options(device="cpu", quantize="int8", cache=tmp_path, progress=lambda *step: steps.append(step))
    for span in (Span(1, 4), Span(2, 5)):
        onnx.load(folder, span, options)
    made = sorted(file.name for file in tmp_path.rglob("*.onnx"))
    assert made == [f"block-{i}.onnx" for i in range(1, 5)]
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(list(tmp_path.rglob("shared-*.data"))) == 2  # cosines and sines, once for all blocks
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.onnx")}
    steps.clear()
    stage = onnx.load(folder, Span(1, 5), options)
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.onnx")}
    sizes = stage.model.block_bytes[1:5]
    assert steps == [(sum(sizes[: i + 1]), sum(sizes)) for i in range(4)]


def test_servers_in_several_processes_may_compile_at_once(model_of: MakeModel, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from backends import Options, Span, registry; "
        f"registry.find('onnx').load(Path({str(model_of('llama'))!r}), Span(0, 6), "
        f"Options(device='cpu', quantize='int4', cache=Path({str(tmp_path)!r})))"
    )
    root = Path(__file__).parents[2]
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=root) for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert len(list(tmp_path.rglob("*.onnx"))) == 7
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_is_said_and_leaves_nothing_behind(
    model_of: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(device="cpu", cache=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1 << 30, 1 << 30, 100))
        with pytest.raises(BackendError, match=r"the disk that holds .* is full"):
            onnx.load(model_of("llama"), Span(0, 2), options)

    def torn(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(graphs, "_shared", torn)
        with pytest.raises(BackendError, match="is full"):
            onnx.load(model_of("llama"), Span(0, 2), options)
    assert not list(tmp_path.rglob("*.onnx")) + list(tmp_path.rglob("*.tmp"))


def test_another_state_of_the_model_is_compiled_anew(model_of: MakeModel, tmp_path: Path) -> None:
    folder = shutil.copytree(model_of("llama"), tmp_path / "model")
    options = Options(device="cpu", cache=tmp_path / "spans")
    onnx.load(folder, Span(0, 1), options)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    onnx.load(folder, Span(0, 1), options)
    assert len(list(tmp_path.rglob("block-0.onnx"))) == 2


def test_what_cannot_be_served_is_refused_by_name(model_of: MakeModel, tmp_path: Path) -> None:
    llama = model_of("llama")
    cases = [
        ({"quantize": "nf4"}, "--quantize nf4: the onnx backend has int8 and int4"),
        ({"dtype": "int3"}, "no dtype 'int3'"),
        ({"kv_dtype": "q8_0"}, "kept in float32"),
        ({"threads": 0}, "at least one thread"),
        ({"device": "npu"}, "no device 'npu'"),
        ({"device": "cuda:x"}, "no device 'cuda:x'"),
        ({"device": "cuda"}, "pip install onnxruntime-gpu"),
        ({"device": "dml"}, "pip install onnxruntime-directml"),
        ({"device": "tensorrt_rtx"}, "pip install onnxruntime-ep-nv-tensorrt-rtx"),
    ]
    for options, words in cases:
        with pytest.raises(BackendError, match=words):
            onnx.load(llama, Span(0, 2), Options(**{"device": "cpu", **options}))
    with pytest.raises(BackendError, match="0:6"):
        onnx.load(llama, Span(4, 7), CPU)
    for family, words in (
        ("llama4", r"Llama4ForCausalLM, .*--backend transformers"),
        ("mamba", r"MambaForCausalLM, .*--backend transformers"),
        ("longrope", "longrope"),
        ("falcon_alibi", "alibi"),
    ):
        with pytest.raises(BackendError, match=words):
            onnx.describe(model_of(family))
    for changes, words in (
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "multiple of 16",
        ),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ):
        with pytest.raises(BackendError, match=words):
            onnx.describe(make_model("qwen2", tmp_path / "qwen2", layers=1, **changes))
    with pytest.raises(BackendError, match="experts with gelu"):
        onnx.describe(make_model("mixtral", tmp_path / "gelu", layers=1, hidden_act="gelu"))
    narrow = make_model("mixtral", tmp_path / "narrow", layers=1, intermediate_size=48)
    with pytest.raises(BackendError, match=r"--quantize int4: .* experts \(64, 48\) to be multiples of 32"):
        onnx.load(narrow, Span(0, 1), Options(device="cpu", quantize="int4"))
    assert "experts" in str(onnx.refusal(narrow, Options(device="cpu", quantize="int8")))
    with pytest.raises(BackendError, match="on the CPU only"):
        families.require_use("BloomForCausalLM", None, devices.KNOWN["cuda"], None)


def test_auto_takes_it_where_it_keeps_precision_and_memory(
    model_of: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert onnx.refusal(model_of("llama"), Options()) is None
    assert onnx.refusal(model_of("llama"), Options(quantize="int4")) is None
    assert "exported by torch" in str(onnx.refusal(model_of("bloom"), Options()))
    assert onnx.refusal(model_of("bloom"), Options(quantize="int8")) is None
    assert "int8 and int4" in str(onnx.refusal(model_of("llama"), Options(quantize="nf4")))
    half = make_model("llama", tmp_path / "half", dtype=torch.bfloat16)
    assert "twice the memory" in str(onnx.refusal(half, Options()))
    assert onnx.refusal(half, Options(quantize="int8")) is None
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "on the cpu only" in str(onnx.refusal(model_of("llama"), Options()))
    assert onnx.refusal(model_of("llama"), Options(device="cpu")) is None


def test_a_batch_that_finds_no_memory_changes_nothing(model_of: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = onnx.load(model_of("llama"), Span(0, 6), CPU)
    ids = np.arange(5, 305, dtype=np.int32)
    stage.forward(Batch(ids[:200], [Row("a", 0, 200)], stage.span))
    used = stage.memory().kv
    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", _no_memory)
        with pytest.raises(MemoryError, match="end some sessions"):
            stage.forward(Batch(ids, [Row("b", 0, 300)], stage.span))
        with pytest.raises(MemoryError, match="end some sessions"):
            stage.forward(Batch(ids[200:300], [Row("a", 200, 100)], stage.span))
    assert stage.memory().kv == used
    out = stage.forward(Batch(ids[200:], [Row("a", 200, 100, 1)], stage.span))
    alone = stage.forward(Batch(ids, [Row("c", 0, 300, 1)], stage.span))
    np.testing.assert_allclose(out, alone, atol=1e-3)


def _no_memory(*arguments: object) -> None:
    raise MemoryError("no room")


def test_without_its_packages_it_says_what_to_install(model_of: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("backends.ort.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install layerswarm\[onnx\]"):
        onnx.describe(model_of("llama"))
    with pytest.raises(BackendError, match=r"pip install layerswarm\[onnx\]"):
        onnx.load(model_of("llama"), Span(0, 1), CPU)
    assert "pip install" in str(onnx.refusal(model_of("llama"), Options()))
