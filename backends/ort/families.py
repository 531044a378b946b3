"""Families that the model builder writes as transformers computes them, and how it has to be told of a configuration.

Listed is what was compared with transformers (tests/backends). The builder knows more families, and computes some of
them otherwise: OLMo's norms without their mean, for one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.stage import BackendError

_PLAIN = frozenset({"default"})


@dataclass(frozen=True, slots=True)
class Family:
    """
    Attributes:
        builder: the builder's class.
        ropes: kinds of rotary embeddings that it knows.
    """

    builder: str
    ropes: frozenset[str] = _PLAIN | {"linear"}


_LLAMA = _PLAIN | {"llama3"}
FAMILIES: Mapping[str, Family] = {
    "Ernie4_5ForCausalLM": Family("ErnieModel"),
    "Gemma2ForCausalLM": Family("Gemma2Model"),
    "Gemma3ForCausalLM": Family("Gemma3Model", _PLAIN),
    "GraniteForCausalLM": Family("GraniteModel"),
    "LlamaForCausalLM": Family("LlamaModel", _LLAMA),
    "MistralForCausalLM": Family("MistralModel"),
    "NemotronForCausalLM": Family("NemotronModel", _PLAIN),
    "Phi3ForCausalLM": Family("Phi3MiniModel", _PLAIN),
    "Qwen2ForCausalLM": Family("QwenModel"),
    "Qwen3ForCausalLM": Family("Qwen3Model"),
    # Its own class in the builder asks for positions that it has not got; blocks without RoPE are handled in `builder`.
    "SmolLM3ForCausalLM": Family("LlamaModel", _LLAMA),
}


def find(architecture: str, config: Any, path: Path) -> Family:
    """The family of a model.

    Raises:
        BackendError: it is not known here, or this configuration of it would be computed otherwise.
    """
    family = FAMILIES.get(architecture)
    if family is None:
        raise BackendError(
            f"{path} is a {architecture}, which the onnx backend does not compile (it does {', '.join(FAMILIES)}); "
            "take --backend transformers"
        )
    for rope in ropes(config):
        kind = rope.get("rope_type", "default")
        if kind not in family.ropes:
            raise BackendError(
                f"{path} has rotary embeddings of the kind {kind}, which the onnx backend does not compile for a "
                f"{architecture}; take --backend transformers"
            )
        turned = int(head_width(config) * rope.get("partial_rotary_factor", 1.0))
        if turned % 16:
            raise BackendError(
                f"{path} turns {turned} numbers of each head, and ONNX Runtime's attention wants a multiple of 16; "
                "take --backend transformers"
            )
    return family


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
