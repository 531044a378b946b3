"""Configurations of transformers 5 in the words of 4.34."""

from __future__ import annotations

from typing import Any

import pytest

from patches.hosting.configs import ConfigError, translated, translating

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "dtype": "bfloat16",
    "attention_bias": False,
    "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"},
}
FALCON = {
    "model_type": "falcon",
    "multi_query": False,
    "hidden_size": 64,
    "ffn_hidden_size": 256,
    "activation": "gelu",
    "rope_parameters": None,
}


def test_what_transformers_5_writes_is_said_in_older_words() -> None:
    said = translated(LLAMA)
    assert (said["rope_theta"], said["rope_scaling"], said["torch_dtype"]) == (1e5, None, "bfloat16")
    assert "rope_parameters" not in said
    linear = translated({**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}})
    assert (linear["rope_theta"], linear["rope_scaling"]) == (5.0, {"type": "linear", "factor": 2.0})
    older = {"model_type": "llama", "rope_theta": 7.0, "rope_scaling": {"type": "dynamic", "factor": 4.0}}
    assert translated(older) == {**older, "rope_scaling": {"type": "dynamic", "factor": 4.0}}
    assert translated(FALCON)["ffn_hidden_size"] == 256
    other = {"model_type": "qwen2", "dtype": "float32", "rope_parameters": {"rope_type": "yarn"}}
    assert translated(other) == other


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({**LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "type 'llama3'"),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "a part of each head"),
        ({**LLAMA, "head_dim": 32}, "heads of width 32"),
        ({**LLAMA, "attention_bias": True}, "attention_bias"),
        ({**LLAMA, "mlp_bias": True}, "mlp_bias"),
        ({**FALCON, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "for Falcon"),
        ({**FALCON, "multi_query": True}, "one key head"),
        ({**FALCON, "activation": "relu"}, "'relu'"),
        ({**FALCON, "ffn_hidden_size": 100}, "MLP"),
        ({**FALCON, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}, "one norm"),
    ],
)
def test_what_upstream_would_compute_wrongly_is_refused(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        translated(changed)


def test_the_reader_of_transformers_translates() -> None:
    class Config:
        @classmethod
        def get_config_dict(cls, name: str, **unused: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            return dict(LLAMA, name=name), unused

    wrapped: Any = type("Patched", (Config,), {"get_config_dict": translating(Config.__dict__["get_config_dict"])})
    config, unused = wrapped.get_config_dict("tiny", token="x")
    assert (config["rope_theta"], config["name"], unused) == (1e5, "tiny", {"token": "x"})
