"""Headers of a checkpoint: the index of its shards, and what a safetensors file says of its tensors.

The format of a safetensors file is an 8-byte little-endian length, a JSON header of that length that gives each
tensor's dtype, shape and byte range, and the tensors' bytes (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from backends.stage import BackendError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100 << 20  # bytes; the limit of the format


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Stored tensor: its dtype as safetensors names it, its shape, its size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: BackendError: it is none."""
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, OSError) as error:
        raise BackendError(f"{file} cannot be read as JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise BackendError(f"{file} is not a JSON object; download it again")
    return value


def read_index(folder: Path) -> dict[str, str] | None:
    """The shard of each tensor; None where the folder has no index.

    Raises:
        BackendError: the index is damaged, or names files outside the folder.
    """
    file = folder / INDEX
    if not file.is_file():
        return None
    weight_map = read_json(file).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise BackendError(f"{file} is damaged: it has no weight_map of tensor names to files; download it again")
    outside = next((shard for shard in weight_map.values() if Path(shard).name != shard), None)
    if outside is not None:
        raise BackendError(f"{file} names a file outside the folder: {outside}")
    return weight_map


def read_raw_header(stream: BinaryIO, file: Path) -> bytes:
    """The JSON of a safetensors file as it is stored; the stream stands at the tensors' bytes then.

    Raises:
        BackendError: the file is cut short, or no safetensors file.
    """
    size = file.stat().st_size
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise BackendError(_cut_short(file, size, 8 + length if size >= 8 else 8))
    if length > MAX_HEADER:
        raise BackendError(
            f"{file} is damaged: a header of {length} bytes, {MAX_HEADER} is the limit; download it again"
        )
    return stream.read(length)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file.

    Raises:
        BackendError: the file is missing, cut short or damaged.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            raw = read_raw_header(stream, file)
        tensors, end = {}, 0
        for name, entry in json.loads(raw).items():
            if name != "__metadata__":
                begin, stop = entry["data_offsets"]
                tensors[name] = StoredTensor(entry["dtype"], tuple(entry["shape"]), stop - begin)
                end = max(end, stop)
    except FileNotFoundError:
        raise BackendError(
            f"{file.parent} has no file {file.name}, which its index names; download the model again"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BackendError(f"{file} is damaged (its header cannot be read: {error}); download it again") from error
    if size < 8 + len(raw) + end:
        raise BackendError(_cut_short(file, size, 8 + len(raw) + end))
    return tensors


def _cut_short(file: Path, size: int, wanted: int) -> str:
    return f"{file} is cut short or damaged ({size} bytes, {wanted} expected); download it again"
