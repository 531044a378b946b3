"""Tiny models with random weights of many families, and what Hugging Face's own `generate` says of them.

A test asks for a folder with `make_model("llama", tmp_path / "llama")` and for the right answer with
`reference_tokens(folder, ids, new)`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

VOCABULARY = 512
WIDTH = 64

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_attention_heads": 4}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}


def _config(name: str, layers: int, *, common: bool = True, layers_name: str = "num_hidden_layers", **own: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**({**_COMMON, **own} if common else own), **{layers_name: layers})


def _longcat(layers: int) -> Any:
    experts: dict[str, Any] = {"moe_topk": 2, "n_routed_experts": 4, "zero_expert_num": 2, "expert_ffn_hidden_size": 32}
    own: dict[str, Any] = {
        **_SMALL,
        **_MLA,
        **experts,
        "max_position_embeddings": 512,
        "head_dim": 8,
        "ffn_hidden_size": 128,
    }
    return _config("LongcatFlashConfig", layers, common=False, layers_name="num_layers", **own)


def _lfm2(layers: int) -> Any:
    types = ["full_attention" if layer % 3 == 1 else "conv" for layer in range(layers)]
    return _config("Lfm2Config", layers, layer_types=types)


def _longrope(layers: int) -> Any:
    factors = {"short_factor": [1.0] * 8, "long_factor": [1.5] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}
    return _config("Phi3Config", layers, rope_parameters=rope, original_max_position_embeddings=64)


def _deepseek_v3(layers: int) -> Any:
    experts: dict[str, Any] = {
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
    }
    return _config("DeepseekV3Config", layers, **_MLA, **experts, topk_group=1, first_k_dense_replace=1)


# Families that the backend must serve, each with what sets it apart.
FAMILIES: dict[str, Callable[[int], Any]] = {
    "llama": partial(_config, "LlamaConfig"),
    "llama_tied": partial(_config, "LlamaConfig", tie_word_embeddings=True),
    "qwen2": partial(_config, "Qwen2Config", use_sliding_window=True, sliding_window=8, max_window_layers=3),
    "qwen3": partial(_config, "Qwen3Config", head_dim=16),
    "mistral": partial(_config, "MistralConfig", sliding_window=8),
    "gemma2": partial(_config, "Gemma2Config", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": partial(_config, "Gemma3TextConfig", head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "mixtral": partial(_config, "MixtralConfig", num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": partial(
        _config,
        "Qwen3MoeConfig",
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        mlp_only_layers=[0],
        decoder_sparse_step=1,
    ),
    "gpt2": partial(
        _config,
        "GPT2Config",
        common=False,
        layers_name="n_layer",
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_head=4,
        n_positions=512,
        scale_attn_by_inverse_layer_idx=True,
    ),
    "bloom": partial(
        _config, "BloomConfig", common=False, layers_name="n_layer", vocab_size=VOCABULARY, hidden_size=WIDTH, n_head=4
    ),
    "falcon": partial(_config, "FalconConfig", common=False, **_SMALL, alibi=False),
    "falcon_alibi": partial(_config, "FalconConfig", common=False, **_SMALL, alibi=True),
    "falcon_new": partial(
        _config, "FalconConfig", common=False, **_SMALL, new_decoder_architecture=True, num_kv_heads=2
    ),
    "phi3": partial(_config, "Phi3Config"),
    "opt": partial(_config, "OPTConfig", common=False, **_SMALL, ffn_dim=128, word_embed_proj_dim=32),
    "olmo2": partial(_config, "Olmo2Config"),
    "gpt_neox": partial(_config, "GPTNeoXConfig", common=False, **_SMALL, intermediate_size=128),
    "gpt_oss": partial(
        _config, "GptOssConfig", head_dim=16, sliding_window=8, num_local_experts=4, num_experts_per_tok=2
    ),
    "deepseek_v3": _deepseek_v3,
    "granite": partial(
        _config, "GraniteConfig", embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22
    ),
    "granitemoe": partial(
        _config, "GraniteMoeConfig", embedding_multiplier=12.0, logits_scaling=8.0, num_local_experts=4
    ),
    "cohere": partial(_config, "CohereConfig", logit_scale=0.25),
    "cohere2": partial(_config, "Cohere2Config", sliding_window=8, logit_scale=0.25),
    "stablelm": partial(_config, "StableLmConfig"),
    "starcoder2": partial(_config, "Starcoder2Config", sliding_window=8),
    "phi": partial(_config, "PhiConfig"),
    "glm4": partial(_config, "Glm4Config", head_dim=16),
    "smollm3": partial(_config, "SmolLM3Config", pad_token_id=0),
    "ernie4_5": partial(_config, "Ernie4_5Config", head_dim=16),
    "nemotron": partial(_config, "NemotronConfig", head_dim=16),
    "olmo": partial(_config, "OlmoConfig"),
    "exaone4": partial(_config, "Exaone4Config", sliding_window=8, sliding_window_pattern=2),
    "hunyuan": partial(_config, "HunYuanDenseV1Config", head_dim=16),
    "mpt": partial(
        _config,
        "MptConfig",
        common=False,
        layers_name="n_layers",
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        n_heads=4,
        max_seq_len=128,
    ),
    "gptj": partial(
        _config,
        "GPTJConfig",
        common=False,
        layers_name="n_layer",
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_head=4,
        rotary_dim=8,
        n_positions=512,
    ),
    "codegen": partial(
        _config,
        "CodeGenConfig",
        common=False,
        layers_name="n_layer",
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_head=4,
        rotary_dim=8,
        n_positions=512,
    ),
    "gpt_bigcode": partial(
        _config,
        "GPTBigCodeConfig",
        common=False,
        layers_name="n_layer",
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_head=4,
        n_positions=512,
    ),
    "llama4": partial(
        _config,
        "Llama4TextConfig",
        head_dim=16,
        intermediate_size_mlp=128,
        num_local_experts=4,
        num_experts_per_tok=1,
        attention_chunk_size=16,
    ),
    "longrope": _longrope,
    "longcat": _longcat,
    "lfm2": _lfm2,
    "jamba": partial(
        _config,
        "JambaConfig",
        attn_layer_period=4,
        attn_layer_offset=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        mamba_d_state=8,
        mamba_dt_rank=8,
        use_mamba_kernels=False,
    ),
    "mamba": partial(
        _config, "MambaConfig", common=False, vocab_size=VOCABULARY, hidden_size=WIDTH, state_size=8, conv_kernel=4
    ),
    "qwen3_next": partial(
        _config,
        "Qwen3NextConfig",
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
}

# Those of them that keep a running state, which cannot go back to an earlier token.
RECURRENT = frozenset({"mamba", "qwen3_next", "jamba", "lfm2"})


def make_model(
    family: str,
    folder: Path,
    *,
    seed: int = 1,
    layers: int = 6,
    shard_size: str = "200KB",
    dtype: Any = None,
    spread: float = 0.15,
    **changes: Any,
) -> Path:
    """Write a model of the family with random weights, cut into several shards.

    Weights are far larger than at a usual start of training (`spread` is their standard deviation), so that the logits
    of different tokens lie well apart. `changes` are set on the configuration. `dtype` is a torch dtype, float32 if it
    is left out.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    shutil.rmtree(folder, ignore_errors=True)
    config = FAMILIES[family](layers)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise(model, spread)
    model.to(dtype or torch.float32).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def randomise(model: Any, spread: float = 0.15) -> None:
    """Draw all weights and biases anew, from torch's own generator."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, spread)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def reference_tokens(folder: Path, ids: list[int], new: int) -> list[int]:
    """The `new` tokens that Hugging Face's greedy `generate` gives after `ids`, in float32, never stopping early."""
    import torch

    model = reference_model(folder)
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False)
    tokens: list[int] = out[0, len(ids) :].tolist()
    return tokens


def reference_model(folder: Path) -> Any:
    """The whole model as Hugging Face loads it, in float32, with no end-of-sequence token."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model
