"""Families of transformers in llama.cpp's terms: metadata, names of tensors, and what is stored otherwise.

The names come from the `gguf` package, which llama.cpp publishes; what differs in the numbers is in llama.cpp's
`convert_hf_to_gguf.py` (MIT), from which the facts below were taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFValueType, get_tensor_name_map

from backends.llamacpp.source import MetadataValue
from backends.stage import Array, BackendError

Config = Mapping[str, Any]

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_HEAD = "lm_head.weight"


def _uint(value: int) -> MetadataValue:
    return MetadataValue(int(value), GGUFValueType.UINT32)


def _float(value: float) -> MetadataValue:
    return MetadataValue(float(value), GGUFValueType.FLOAT32)


@dataclass(frozen=True)
class GgufFamily:
    """A family of transformers, and what llama.cpp has otherwise in it.

    Attributes:
        arch: of the `gguf` package.
        permuted: queries and keys are stored in the order of the other kind of RoPE.
        norm_offset: added to the weights of norms, which the family stores less one.
        scales: names of numbers in the configuration, by their keys in GGUF.
        activation: the only one that llama.cpp computes.
        pattern: layer types of attention go into the file.
        refused: why a configuration cannot be run, or None.
    """

    arch: MODEL_ARCH
    permuted: bool = False
    norm_offset: float = 0.0
    scales: Mapping[str, str] = field(default_factory=dict)
    activation: str = "silu"
    pattern: bool = False
    refused: Callable[[Config], str | None] = lambda config: None

    @property
    def architecture(self) -> str:
        return str(MODEL_ARCH_NAMES[self.arch])

    def names(self, config: Config) -> Callable[[str], str | None]:
        """From a stored tensor's name to the one in GGUF; None: it is not needed.

        Raises:
            BackendError: by what it returns, of a tensor without a name in llama.cpp.
        """
        known = get_tensor_name_map(self.arch, config["num_hidden_layers"])

        def name(stored: str) -> str | None:
            if stored == _HEAD and config.get("tie_word_embeddings"):
                return None
            if stored.endswith((".rotary_emb.inv_freq", ".masked_bias", ".attn.bias")):
                return None
            found = known.get_name(_EXPERT.sub(".experts.", stored), try_suffixes=(".weight", ".bias"))
            if found is None:
                raise BackendError(
                    f"llama.cpp's {self.architecture} has no place for {stored}; take --backend transformers"
                )
            return str(found)

        return name

    def mended(self, config: Config, name: str) -> Callable[[Array], Array] | None:
        """What to do with a tensor's numbers; None: nothing."""
        if self.norm_offset and name.endswith("norm.weight"):
            return lambda array: array.astype(np.float32) + np.float32(self.norm_offset)
        if self.permuted and ".attn_q." in name:
            return lambda array: _permuted(array, config["num_attention_heads"])
        if self.permuted and ".attn_k." in name:
            return lambda array: _permuted(array, config.get("num_key_value_heads") or config["num_attention_heads"])
        return None

    def metadata(self, config: Config) -> dict[str, MetadataValue]:
        """Without the architecture's name before each key."""
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        rope = _rope(config)
        found = {
            "block_count": _uint(config["num_hidden_layers"]),
            "context_length": _uint(config.get("max_position_embeddings") or 0),
            "embedding_length": _uint(config["hidden_size"]),
            "feed_forward_length": _uint(config["intermediate_size"]),
            "attention.head_count": _uint(heads),
            "attention.head_count_kv": _uint(config.get("num_key_value_heads") or heads),
            "attention.key_length": _uint(width),
            "attention.value_length": _uint(width),
            "attention.layer_norm_rms_epsilon": _float(config["rms_norm_eps"]),
            "rope.freq_base": _float(rope.get("rope_theta", 10000.0)),
            "rope.dimension_count": _uint(int(width * rope.get("partial_rotary_factor", 1.0))),
            "vocab_size": _uint(config["vocab_size"]),
        }
        if rope.get("rope_type") == "linear":
            found["rope.scaling.type"] = MetadataValue("linear", GGUFValueType.STRING)
            found["rope.scaling.factor"] = _float(rope["factor"])
        for key, name in self.scales.items():
            if config.get(name) is not None:
                found[key] = _float(config[name])
        if self.pattern:
            found["attention.sliding_window"] = _uint(config["sliding_window"])
            windows = [kind == "sliding_attention" for kind in config["layer_types"]]
            found["attention.sliding_window_pattern"] = MetadataValue(windows, GGUFValueType.ARRAY, GGUFValueType.BOOL)
            local = (config.get("rope_parameters") or {}).get("sliding_attention")
            if isinstance(local, Mapping) and "rope_theta" in local:
                found["rope.freq_base_swa"] = _float(local["rope_theta"])
        if experts := _experts(config):
            found["expert_count"] = _uint(experts)
            found["expert_used_count"] = _uint(config["num_experts_per_tok"])
            if "moe_intermediate_size" in config:
                found["expert_feed_forward_length"] = _uint(config["moe_intermediate_size"])
        return found

    def made(self, config: Config) -> dict[str, Array]:
        """Tensors that the file has and the folder has not: how RoPE's frequencies are stretched."""
        rope = _rope(config)
        if rope.get("rope_type") != "llama3":
            return {}
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, width, 2, dtype=np.float32) / width)
        original = rope.get("original_max_position_embeddings", 8192)
        low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
        smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
        return {"rope_freqs.weight": (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)}


def find(config: Config, path: Path) -> GgufFamily:
    """The family of a configuration.

    Raises:
        BackendError: its mapping is not known, or llama.cpp computes this one otherwise.
    """
    kind = config.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        raise BackendError(
            f"{path} is a {kind}, whose mapping to llama.cpp is not known here (known: {', '.join(FAMILIES)}); "
            "take a GGUF file of it, or --backend transformers"
        )
    reason = family.refused(config) or _rope_refused(config)
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation != family.activation:
        reason = reason or f"it has the activation {activation}"
    if reason:
        raise BackendError(
            f"llama.cpp does not compute {path} as its makers meant it: {reason}; take --backend transformers"
        )
    return family


def expert(stored: str) -> int:
    """The number of the expert that a stored tensor belongs to; 0: to none."""
    found = _EXPERT.search(stored)
    return int(found[1]) if found else 0


def _experts(config: Config) -> int:
    return int(config.get("num_local_experts") or config.get("num_experts") or 0)


def _rope(config: Config) -> dict[str, Any]:
    """RoPE's parameters, as transformers writes them since version 5 or did before."""
    new: dict[str, Any] = config.get("rope_parameters") or {}
    new = new.get("full_attention", new)
    old: dict[str, Any] = config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **old, **new}
    if "type" in old:
        rope.setdefault("rope_type", old["type"])
    if "partial_rotary_factor" in config:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    return rope


def _rope_refused(config: Config) -> str | None:
    kind = _rope(config).get("rope_type", "default")
    return None if kind in ("default", "linear", "llama3") else f"this backend does not know its RoPE ({kind})"


def _permuted(array: Array, heads: int) -> Array:
    """Rows of queries or keys from halves to pairs."""
    split = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return split.swapaxes(1, 2).reshape(array.shape)


def _window(config: Config) -> str | None:
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    limit = config.get("max_position_embeddings") or 0
    used = "sliding_attention" in kinds if kinds else config.get("use_sliding_window", True)
    if not used or window is None or (limit and window >= limit):
        return None
    return f"its attention has a window of {window} tokens, which llama.cpp leaves out"


def _sparse(config: Config) -> str | None:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        return "some of its blocks have no experts"
    if not config.get("norm_topk_prob"):
        return "the weights of its experts do not add up to 1 (norm_topk_prob)"
    return _window(config)


def _soft_capping(config: Config) -> str | None:
    scale = config.get("query_pre_attn_scalar")
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return None if scale in (None, width) else f"it scales queries by {scale}, not by their width"


_GEMMA = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_GELU = "gelu_pytorch_tanh"
FAMILIES: dict[str, GgufFamily] = {
    "gemma2": GgufFamily(
        MODEL_ARCH.GEMMA2, norm_offset=1.0, scales=_GEMMA, activation=_GELU, pattern=True, refused=_soft_capping
    ),
    "gemma3_text": GgufFamily(
        MODEL_ARCH.GEMMA3, norm_offset=1.0, scales=_GEMMA, activation=_GELU, pattern=True, refused=_soft_capping
    ),
    "granite": GgufFamily(
        MODEL_ARCH.GRANITE,
        permuted=True,
        scales={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "llama": GgufFamily(MODEL_ARCH.LLAMA, permuted=True),
    "mistral": GgufFamily(MODEL_ARCH.LLAMA, permuted=True, refused=_window),
    "mixtral": GgufFamily(MODEL_ARCH.LLAMA, permuted=True, refused=_window),
    "olmo2": GgufFamily(MODEL_ARCH.OLMO2),
    "phi3": GgufFamily(MODEL_ARCH.PHI3, refused=_window),
    "qwen2": GgufFamily(MODEL_ARCH.QWEN2, refused=_window),
    "qwen3": GgufFamily(MODEL_ARCH.QWEN3, refused=_window),
    "qwen3_moe": GgufFamily(MODEL_ARCH.QWEN3MOE, refused=_sparse),
}
