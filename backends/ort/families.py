"""Families whose blocks are compiled as transformers computes them, and by whom.

Listed is what was compared with transformers (tests/backends). The model builder knows more families than it is given
here, and computes some of them otherwise: OLMo's norms without their mean, for one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.ort.devices import Device
from backends.stage import BackendError

_PLAIN = frozenset({"default"})


@dataclass(frozen=True, slots=True)
class OnnxFamily:
    """A family whose blocks can be compiled.

    Attributes:
        builder: the builder's class.
        ropes: kinds of rotary embeddings that it knows.
    """

    builder: str
    ropes: frozenset[str] = _PLAIN | {"linear"}


_LLAMA = _PLAIN | {"llama3"}
FAMILIES: Mapping[str, OnnxFamily] = {
    "Ernie4_5ForCausalLM": OnnxFamily("ErnieModel"),
    "Gemma2ForCausalLM": OnnxFamily("Gemma2Model"),
    "Gemma3ForCausalLM": OnnxFamily("Gemma3Model", _PLAIN),
    "GraniteForCausalLM": OnnxFamily("GraniteModel"),
    "LlamaForCausalLM": OnnxFamily("LlamaModel", _LLAMA),
    "MistralForCausalLM": OnnxFamily("MistralModel"),
    "NemotronForCausalLM": OnnxFamily("NemotronModel", _PLAIN),
    "Phi3ForCausalLM": OnnxFamily("Phi3MiniModel", _PLAIN),
    "Qwen2ForCausalLM": OnnxFamily("QwenModel"),
    "Qwen3ForCausalLM": OnnxFamily("Qwen3Model"),
    # Its own class in the builder asks for positions that it has not got; blocks without RoPE are handled in `builder`.
    "SmolLM3ForCausalLM": OnnxFamily("LlamaModel", _LLAMA),
}

# What torch exports: families that the builder does not know, and those of `FAMILIES` with settings that it does not.
EXPERTS = frozenset(
    {
        "DeepseekV3ForCausalLM",
        "GptOssForCausalLM",
        "GraniteMoeForCausalLM",
        "MixtralForCausalLM",
        "Qwen3MoeForCausalLM",
    }
)
EXPORTED = EXPERTS | {
    "BloomForCausalLM",
    "CodeGenForCausalLM",
    "Cohere2ForCausalLM",
    "CohereForCausalLM",
    "Exaone4ForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTJForCausalLM",
    "GPTNeoXForCausalLM",
    "Glm4ForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "LlamaForCausalLM",
    "MptForCausalLM",
    "NemotronForCausalLM",
    "OPTForCausalLM",
    "Olmo2ForCausalLM",
    "OlmoForCausalLM",
    "PhiForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
}
_FIXED = _LLAMA | {"linear", "yarn"}  # kinds of rotary embeddings that do not change with the length of a sequence


def is_built(architecture: str, config: Any) -> bool:
    """Whether the model builder writes the blocks; otherwise they are exported."""
    family = FAMILIES.get(architecture)
    if family is None:
        return False
    for rope in ropes(config):
        turned = int(head_width(config) * rope.get("partial_rotary_factor", 1.0))
        if rope.get("rope_type", "default") not in family.ropes or turned % 16:
            return False  # grouped-query attention turns multiples of 16 numbers of a head
    return True


def require(architecture: str, config: Any, path: Path) -> None:
    """
    Raises:
        BackendError: the model's blocks can be neither built nor exported as transformers computes them.
    """
    if is_built(architecture, config):
        return
    if architecture not in EXPORTED and architecture not in FAMILIES:
        known = ", ".join(sorted(EXPORTED.union(FAMILIES)))
        raise _refused(path, f"is a {architecture}, which the onnx backend does not compile (it does {known})")
    for rope in ropes(config):
        kind = rope.get("rope_type", "default")
        if kind not in (_FIXED if architecture in EXPORTED else FAMILIES[architecture].ropes):
            wrong = f"has rotary embeddings of the kind {kind}, which the onnx backend does not compile for a"
            raise _refused(path, f"{wrong} {architecture}")
    if architecture not in EXPORTED:
        raise _refused(path, "turns a part of each head that is no multiple of 16 numbers, as ONNX Runtime wants it")
    if getattr(config, "alibi", False):
        raise _refused(path, "has alibi that falcon makes for the tokens of a step alone, and in bfloat16")
    if architecture in EXPERTS and config.hidden_act != "silu":
        raise _refused(path, f"has experts with {config.hidden_act}; those of the onnx backend have silu")


def _refused(path: Path, reason: str) -> BackendError:
    return BackendError(f"{path} {reason}; take --backend transformers")


def require_use(architecture: str, config: Any, device: Device, quantize: str | None) -> None:
    """
    Raises:
        BackendError: the blocks are exported, and exported blocks cannot be used so.
    """
    if is_built(architecture, config):
        return
    if device.name != "cpu":
        raise BackendError(
            f"the onnx backend exports the blocks of a {architecture}, and runs such blocks on the CPU only; "
            "take --device cpu, or --backend transformers"
        )
    if quantize and architecture in EXPERTS:
        inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        if config.hidden_size % 32 or inner % 32:
            raise BackendError(
                f"--quantize {quantize}: ONNX Runtime wants the widths of experts ({config.hidden_size}, {inner}) "
                "to be multiples of 32; leave it out"
            )


def ropes(config: Any) -> list[dict[str, Any]]:
    """The parameters of the rotary embeddings; some families have them by the kind of attention."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]


def head_width(config: Any) -> int:
    """Numbers of a key or a value."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def told(config: Any, architecture: str) -> Any:
    """A copy of the configuration in the words that the builder looks for."""
    config = copy.deepcopy(config)
    config.architectures, config._name_or_path = [architecture], ""
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "layer_types", None) is None:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    by_kind = getattr(config, "rope_parameters", None) or {}
    if "sliding_attention" in by_kind:
        config.rope_local_base_freq = by_kind["sliding_attention"]["rope_theta"]
        config.rope_parameters = dict(by_kind["full_attention"])
    if hasattr(config, "norm_eps") and not hasattr(config, "rms_norm_eps"):
        config.rms_norm_eps = config.norm_eps
    return config
