"""What cannot be served is refused with one line that says what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backends import BackendError, Options, Span, registry
from tests.backends.chain import CPU
from tests.backends.conftest import MakeModel

INDEX = "model.safetensors.index.json"
transformers = registry.find("transformers")


@pytest.fixture
def llama(model_of: MakeModel, tmp_path: Path) -> Path:
    """A copy of a tiny llama, to be damaged."""
    folder = tmp_path / "llama"
    shutil.copytree(model_of("llama"), folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    for name, value in changes.items():
        if value is None:
            content.pop(name, None)
        else:
            content[name] = value
    file.write_text(json.dumps(content))


def shard_of(folder: Path, tensor: str) -> Path:
    return folder / str(json.loads((folder / INDEX).read_text())["weight_map"][tensor])


def refusal(folder: Path, span: Span | None = None, options: Options = CPU) -> str:
    """The text of the error; it is one line and names no internals."""
    with pytest.raises(BackendError) as caught:
        if span is None:
            transformers.describe(folder)
        else:
            transformers.load(folder, span, options)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_a_folder_without_a_model(tmp_path: Path, llama: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nowhere")
    assert "is not a folder" in refusal(llama / "config.json")
    assert "no config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "cannot be read as JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "not a JSON object" in refusal(tmp_path)


def test_a_configuration_that_transformers_does_not_know(llama: Path) -> None:
    edit(llama / "config.json", model_type="gpt9000")
    assert "gpt9000" in refusal(llama)
    edit(llama / "config.json", auto_map={"AutoModelForCausalLM": "modeling_gpt9000.GPT9000"})
    text = refusal(llama)
    assert "trust_remote_code" in text
    assert "never runs" in text
    edit(llama / "config.json", model_type=None, auto_map=None)
    assert "no model_type" in refusal(llama)


@pytest.mark.parametrize(
    ("model_type", "why"), [("t5", "encoder-decoder"), ("vit", "cannot build a causal language model")]
)
def test_a_model_that_is_no_causal_language_model(llama: Path, model_type: str, why: str) -> None:
    edit(llama / "config.json", model_type=model_type, architectures=None)
    assert why in refusal(llama)


def test_weights_that_are_already_quantised(llama: Path) -> None:
    edit(llama / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "gptq" in refusal(llama)


def test_a_folder_without_safetensors(llama: Path) -> None:
    for file in llama.glob("*.safetensors*"):
        file.unlink()
    assert "no *.safetensors" in refusal(llama)
    (llama / "model.gguf").touch()
    assert "llama_cpp" in refusal(llama)
    (llama / "pytorch_model.bin").touch()
    text = refusal(llama)
    assert "pickle" in text
    assert "safetensors" in text


def test_files_that_are_missing_or_damaged(llama: Path) -> None:
    tensor = "model.layers.4.mlp.up_proj.weight"
    shard = shard_of(llama, tensor)
    whole = shard.read_bytes()
    for damage, why in ((whole[:-100], "cut short"), (whole[:5], "cut short"), (b"\x08" + whole[1:], "damaged")):
        shard.write_bytes(damage)
        for text in (refusal(llama), refusal(llama, Span(4, 5))):
            assert why in text
            assert shard.name in text
    shard.unlink()
    assert f"no file {shard.name}" in refusal(llama)
    assert f"no file {shard.name}" in refusal(llama, Span(4, 5))


def test_an_index_that_does_not_say_the_truth(llama: Path) -> None:
    tensor = "model.layers.4.mlp.up_proj.weight"
    weight_map = json.loads((llama / INDEX).read_text())["weight_map"]
    elsewhere = next(shard for shard in weight_map.values() if shard != weight_map[tensor])
    edit(llama / INDEX, weight_map={**weight_map, tensor: elsewhere})
    assert tensor in refusal(llama, Span(4, 5))
    edit(llama / INDEX, weight_map={name: shard for name, shard in weight_map.items() if name != tensor})
    text = refusal(llama, Span(3, 5))
    assert tensor in text
    assert "block 4" in text
    edit(llama / INDEX, weight_map={name: shard for name, shard in weight_map.items() if ".layers.4." not in name})
    assert "block 4" in refusal(llama)
    edit(llama / INDEX, weight_map={tensor: "../outside.safetensors"})
    assert "outside the folder" in refusal(llama)
    edit(llama / INDEX, weight_map=None)
    assert "no weight_map" in refusal(llama)


def test_weights_of_another_shape_than_the_configuration_says(llama: Path) -> None:
    edit(llama / "config.json", intermediate_size=96)
    text = refusal(llama, Span(0, 2))
    assert "does not fit its configuration" in text
    assert "(128, 64), not (96, 64)" in text or "(64, 128), not (64, 96)" in text
    edit(llama / "config.json", intermediate_size=128, num_hidden_layers=7)
    assert "block 6" in refusal(llama, Span(0, 2))


def test_spans_outside_the_model(llama: Path) -> None:
    assert "blocks 20:40 of a model with 6" in refusal(llama, Span(20, 40))
    assert "blocks 3:9 of a model with 6" in refusal(llama, Span(3, 9))
    for span in (Span(3, 3), Span(4, 2), Span(-1, 2)):
        assert f"blocks {span}: a span is START:END" in refusal(llama, span)


def test_options_that_this_machine_does_not_have(llama: Path) -> None:
    span = Span(0, 1)
    assert "there is no device" in refusal(llama, span, Options(device="npu:0"))
    assert "there is no device" in refusal(llama, span, Options(device="rubbish"))
    assert "there is no dtype 'int3'" in refusal(llama, span, Options(device="cpu", dtype="int3"))
    assert "take int8 or nf4" in refusal(llama, span, Options(device="cpu", quantize="int3"))
    assert "at least one thread" in refusal(llama, span, Options(device="cpu", threads=0))
    import torch

    if not torch.cuda.is_available():
        assert "no CUDA device" in refusal(llama, span, Options(device="cuda"))
        assert "no CUDA device" in refusal(llama, span, Options(device="cuda:1"))


def test_quantising_where_it_would_not_help(model_of: MakeModel) -> None:
    text = refusal(model_of("mixtral"), Span(0, 2), Options(device="cpu", quantize="nf4"))
    assert "experts" in text
    assert "linear layers" in refusal(model_of("gpt2"), Span(0, 2), Options(device="cpu", quantize="int8"))


def _tiny(name: str, **own: Any) -> Any:
    import transformers as library

    size = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    return getattr(library, name)(**{**size, "num_attention_heads": 4, "max_position_embeddings": 512, **own})


@pytest.mark.parametrize(
    ("config", "why"),
    [
        # Some blocks are also given the embeddings.
        (
            lambda: _tiny(
                "ZambaConfig",
                num_key_value_heads=4,
                num_hidden_layers=6,
                attn_layer_period=3,
                attn_layer_offset=1,
                mamba_d_state=8,
                use_mamba_kernels=False,
            ),
            "more of the sequence",
        ),
        # Several streams of hidden states, and inputs of every block's own.
        (
            lambda: _tiny(
                "Gemma3nTextConfig",
                num_key_value_heads=2,
                head_dim=16,
                num_kv_shared_layers=0,
                laurel_rank=8,
                vocab_size_per_layer_input=512,
            ),
            "around its blocks",
        ),
        # The last blocks use the keys and values of earlier ones.
        (
            lambda: _tiny(
                "Gemma4TextConfig",
                num_key_value_heads=2,
                head_dim=16,
                hidden_size_per_layer_input=0,
                layer_types=["sliding_attention", "full_attention"] * 2,
                num_kv_shared_layers=2,
            ),
            "cut into spans",
        ),
        # A state that is not a cache.
        (lambda: _tiny("RwkvConfig", attention_hidden_size=64), "state in a way of its own"),
        # Attends to later tokens.
        (lambda: _tiny("BertConfig", is_decoder=False), "in parts"),
    ],
    ids=["zamba", "gemma3n", "gemma4", "rwkv", "bert"],
)
def test_families_that_cannot_be_cut_are_refused(tmp_path: Path, config: Any, why: str) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(config()).save_pretrained(tmp_path)
    assert why in refusal(tmp_path, Span(1, 3))
