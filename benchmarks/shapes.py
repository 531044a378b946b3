"""Models of a known shape with random weights: speed does not depend on what the numbers are.

python -m benchmarks.shapes llama-1.1b FOLDER
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from safetensors.numpy import save_file

SHAPES: dict[str, dict[str, Any]] = {
    "llama-1.1b": {  # that of TinyLlama
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": "float16",
    },
}


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama's tensors."""
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocabulary, width)
    for block in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{block}."
        yield prefix + "input_layernorm.weight", (width,)
        yield prefix + "post_attention_layernorm.weight", (width,)
        for name, rows in (("q", width), ("k", keys), ("v", keys), ("o", width)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, width)
        for name, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))):
            yield f"{prefix}mlp.{name}_proj.weight", shape
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (vocabulary, width)


def make(shape: str, folder: Path) -> Path:
    """Write the model of this shape, unless it is there: a folder without a tokenizer."""
    config = SHAPES[shape]
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)

    def random(size: tuple[int, ...]) -> Any:
        if len(size) == 1:
            return np.ones(size, np.float16)
        return (generator.standard_normal(size, np.float32) * 0.02).astype(np.float16)

    save_file(
        {name: random(size) for name, size in tensors(config)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder


@click.command(help="Write a model of a known shape with random weights.")
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.argument("folder", type=click.Path(path_type=Path))
def main(shape: str, folder: Path) -> None:
    """Write a model of a known shape with random weights into a folder."""
    make(shape, folder)


if __name__ == "__main__":
    main()
