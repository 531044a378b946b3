"""Shards: which weight files a model folder has, and which of them a span needs. Nothing here reads tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from backends import BackendError
from backends.checkpoint.headers import SINGLE, read_index
from swarm.errors import SwarmError

# The names that the families of transformers give to their list of blocks; the number after it is the block.
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def block_of(tensor: str) -> int | None:
    """The block that a tensor belongs to; None for embeddings, final norm and LM head."""
    found = _BLOCK.search(tensor)
    return int(found[1]) if found else None


def shards_of_span(weight_map: Mapping[str, str], start: int, end: int) -> list[str]:
    """Files that hold the tensors of blocks `start:end`, and of what lies outside of the blocks for a head or a tail.

    Args:
        weight_map: tensor name to file name, as in `model.safetensors.index.json`.
    """
    blocks = 1 + max((block for name in weight_map if (block := block_of(name)) is not None), default=-1)
    edge = start == 0 or end >= blocks
    needed = set()
    for name, file in weight_map.items():
        block = block_of(name)
        if (block is None and edge) or (block is not None and start <= block < end):
            needed.add(file)
    return sorted(needed)


def weight_map(folder: Path) -> dict[str, str] | None:
    """The index of a model in several files; None where there is none.

    Raises:
        SwarmError: the index is damaged, or names a file outside of the folder.
    """
    try:
        return read_index(folder)
    except BackendError as error:
        raise SwarmError(str(error)) from error


def is_complete(folder: Path) -> bool:
    """Whether the configuration and every weight file that the index names are there."""
    if not (folder / "config.json").exists():
        return False
    try:
        shards = weight_map(folder)
    except SwarmError:
        return False
    return all((folder / name).exists() for name in ([SINGLE] if shards is None else set(shards.values())))
