"""Petals model: a model folder in upstream's terms, its configuration, and which tensors are blocks or edges."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petals import AutoDistributedConfig

from backends.checkpoint import files  # knows no tensor library, unlike the rest of that package
from backends.checkpoint.files import ModelFolder
from backends.checkpoint.headers import INDEX, SINGLE
from backends.stage import BackendError, ModelInfo
from patches.hosting.configs import ConfigError

_ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_HEAD = "lm_head.weight"
# What lies around the blocks, by family: names of the embedding's and of the final norm's tensors.
_EDGES = {
    "llama": (("model.embed_tokens.weight",), ("model.norm.weight",)),
    "bloom": (
        ("word_embeddings.weight", "word_embeddings_layernorm.weight", "word_embeddings_layernorm.bias"),
        ("ln_f.weight", "ln_f.bias"),
    ),
    "falcon": (("transformer.word_embeddings.weight",), ("transformer.ln_f.weight", "transformer.ln_f.bias")),
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "bloom": "BloomForCausalLM", "falcon": "FalconForCausalLM"}


@dataclass(frozen=True)
class PetalsModel:
    """A model folder in upstream's terms.

    Attributes:
        config: upstream's, with the prefix under which this folder stores its blocks.
        blocks: the names of each block's tensors.
        head, tail: the names of the tensors before the blocks, and after: the norm's, then the LM head's.
    """

    folder: ModelFolder
    config: Any
    info: ModelInfo
    blocks: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]
    tail: tuple[str, ...]

    def nbytes(self, names: Iterable[str]) -> int:
        return sum(self.folder.tensor(name).nbytes for name in names)


def read(path: Path) -> PetalsModel:
    """Read what is known of a model without its weights.

    Raises:
        BackendError: no model there, or one that upstream cannot compute.
    """
    logging.getLogger("petals").setLevel(logging.WARNING)
    folder = files.read(path)
    if not (path / INDEX).is_file() and not (path / SINGLE).is_file():
        raise BackendError(f"{path} has neither {INDEX} nor {SINGLE}, and upstream Petals looks for no other")
    family = folder.config.get("model_type")
    if family not in _EDGES:
        raise BackendError(f"upstream Petals knows Llama, BLOOM and Falcon, not {family!r}; take another --backend")
    config = _config(path)
    prefix, blocks = _blocks(folder, config)
    config.block_prefix = prefix
    head, tail = _edges(folder, family, config)
    dtype = folder.stored_dtype(list(blocks[0]))
    model = PetalsModel(folder, config, _NOTHING, blocks, head, tail)
    info = ModelInfo(
        architecture=(folder.config.get("architectures") or [_ARCHITECTURES[family]])[0],
        blocks=len(blocks),
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_length=_context_length(config),
        dtype=dtype,
        block_bytes=tuple(model.nbytes(names) for names in blocks),
        edge_bytes=(model.nbytes(head), model.nbytes(tail)),
        kv_bytes_per_token=2 * config.hidden_size // config.num_key_value_groups * _ITEM_BYTES[dtype],
    )
    if info.architecture != _ARCHITECTURES[family]:
        raise BackendError(f"{path} is a {info.architecture}; only causal language models work")
    return PetalsModel(folder, config, info, blocks, head, tail)


_NOTHING = ModelInfo("", 0, 0, 0, 0, "", (), (0, 0), 0)


def _config(path: Path) -> Any:
    try:
        return AutoDistributedConfig.from_pretrained(str(path), dht_prefix="span")
    except ConfigError as error:
        raise BackendError(f"{path} has {error}; take another --backend") from error
    except Exception as error:
        raise BackendError(f"{path}: upstream Petals cannot read the configuration: {error}") from error


def _blocks(folder: ModelFolder, config: Any) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """Where the blocks are: BLOOM's are stored with `transformer.` before their names, or without."""
    for prefix in (config.block_prefix, f"transformer.{config.block_prefix}"):
        stems = [f"{prefix}.{block}." for block in range(config.num_hidden_layers)]
        blocks = tuple(tuple(name for name in folder.weight_map if name.startswith(stem)) for stem in stems)
        if all(blocks):
            return prefix, blocks
    raise BackendError(
        f"{folder.path} has no tensors for all of its {config.num_hidden_layers} blocks; "
        "the download may not be complete, or config.json belongs to another model"
    )


def _edges(folder: ModelFolder, family: str, config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    def stored(name: str) -> str:
        found = next((known for known in (name, f"transformer.{name}") if known in folder.weight_map), None)
        if found is None:
            raise BackendError(f"{folder.path} has no tensor {name}; the download may not be complete")
        return found

    embedding, norm = (tuple(map(stored, names)) for names in _EDGES[family])
    tied = config.tie_word_embeddings or _HEAD not in folder.weight_map
    return embedding, (*norm, embedding[0] if tied else _HEAD)


def _context_length(config: Any) -> int:
    """The longest sequence that the model was made for, in tokens; 0 where it is unbounded."""
    value = getattr(config, "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else 0
