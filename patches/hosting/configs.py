"""Configurations that newer transformers have written, for the one that upstream needs (4.34).

transformers 5 keeps what belongs to rotary embeddings in `rope_parameters`, and calls `torch_dtype` just `dtype`. The
older one passes over what it does not know, and would compute with other numbers than the model was made for. So what
means the same is renamed, and what it cannot compute is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

FAMILIES = ("llama", "bloom", "falcon")


class ConfigError(ValueError):
    """A model that upstream cannot compute. The text says why."""


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration in the words of transformers 4.34; of other families than upstream's, as it is.

    Raises:
        ConfigError: it says something that 4.34 has no word for.
    """
    said = dict(config)
    if said.get("model_type") not in FAMILIES:
        return said
    if "dtype" in said:
        said.setdefault("torch_dtype", said.pop("dtype"))
    if said["model_type"] == "llama":
        _translate_rope(said)
        _require_llama(said)
    elif said["model_type"] == "falcon":
        _translate_rope(said)
        _require_falcon(said)
    return said


def _translate_rope(said: dict[str, Any]) -> None:
    rope = said.pop("rope_parameters", None)
    if rope is None:
        rope = said.get("rope_scaling") or {}
        rope = {"rope_type": rope.get("rope_type", rope.get("type", "default")), **rope}
    kind = rope.get("rope_type") or "default"
    said["rope_scaling"] = None
    if "rope_theta" in rope:
        said["rope_theta"] = rope["rope_theta"]
    if kind in ("linear", "dynamic"):
        said["rope_scaling"] = {"type": kind, "factor": float(rope["factor"])}
    elif kind != "default":
        raise ConfigError(f"rotary embeddings of type {kind!r}, which upstream Petals does not know")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("rotary embeddings of a part of each head, which upstream Petals does not know")


def _require_llama(said: dict[str, Any]) -> None:
    heads = said.get("num_attention_heads", 32)
    if said.get("head_dim") not in (None, said.get("hidden_size", 4096) // heads):
        raise ConfigError(f"heads of width {said['head_dim']}, which upstream Petals takes to be hidden_size / heads")
    for bias in ("attention_bias", "mlp_bias"):
        if said.get(bias):
            raise ConfigError(f"{bias}, which upstream Petals does not know")


def _require_falcon(said: dict[str, Any]) -> None:
    if said.get("multi_query", True) and not said.get("new_decoder_architecture"):
        raise ConfigError("one key head for all query heads (as Falcon 7B), on which upstream Petals' own blocks fail")
    if said.get("rope_theta", 10000.0) != 10000.0 or said["rope_scaling"] is not None:
        raise ConfigError("rotary embeddings other than the usual ones, which upstream Petals does not know for Falcon")
    if said.get("activation", "gelu") != "gelu":
        raise ConfigError(f"the activation {said['activation']!r}, which upstream Petals does not know for Falcon")
    if said.get("ffn_hidden_size") not in (None, 4 * said.get("hidden_size", 4544)):
        raise ConfigError("an MLP that is not four times as wide as the model, which upstream Petals does not know")
    if said.get("num_ln_in_parallel_attn") not in (None, 2) and said.get("new_decoder_architecture"):
        raise ConfigError("one norm for attention and MLP, which upstream Petals does not know for this architecture")


def translating(original: Callable[..., Any]) -> Any:
    """`PretrainedConfig.get_config_dict`, with translated configurations."""
    plain = original.__func__ if isinstance(original, classmethod) else original

    def get_config_dict(cls: type, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config, unused = plain(cls, *args, **kwargs)
        return translated(config), unused

    return classmethod(get_config_dict)
