"""Safetensors headers: what a file says of its tensors, read without their data, and the index over several files.

The format of a safetensors file is an 8-byte little-endian length, a JSON header of that length that gives each
tensor's dtype, shape and byte range, and the tensors' bytes (https://huggingface.co/docs/safetensors). Files come from
the network, so nothing in them is believed: a header has a limit, and whatever is wrong is one `BackendError` that
names the file. No tensor library is needed here.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, BinaryIO

from backends.stage import BackendError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100 << 20  # bytes; the limit of the safetensors format
_LENGTH = 8  # bytes of the header's length


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A stored tensor: its dtype as safetensors names it, its shape, its size in bytes, its offset in the file."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by their names.

    Raises:
        BackendError: the file is missing, cut short or not a safetensors file.
    """
    try:
        with file.open("rb") as stream:
            raw = read_raw_header(stream, file)
            size = os.fstat(stream.fileno()).st_size
        tensors = _tensors(raw)
    except FileNotFoundError:
        raise BackendError(
            f"{file.parent} has no file {file.name}, which its index names; download the model again"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise BackendError(f"{file} is damaged (its header cannot be read: {error}); download it again") from error
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=_LENGTH + len(raw))
    if size < end:
        raise BackendError(_cut_short(file, size, end))
    return tensors


def read_raw_header(stream: BinaryIO, file: Path) -> bytes:
    """The bytes of the header, unparsed; the stream then stands at the first tensor.

    Args:
        stream: the file, open at its beginning.
        file: its path, for messages.

    Raises:
        BackendError: the file is shorter than it says, or its header is over the limit.
        OSError: it cannot be read.
    """
    size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(stream.read(_LENGTH), "little")
    if size < _LENGTH or length > size - _LENGTH:
        raise BackendError(_cut_short(file, size, _LENGTH + length if size >= _LENGTH else _LENGTH))
    if length > MAX_HEADER:
        raise BackendError(
            f"{file} is damaged (a header of {length} bytes, over the limit of {MAX_HEADER}); download it again"
        )
    return stream.read(length)


def read_index(folder: Path) -> dict[str, str] | None:
    """The files of a model in several, by the names of their tensors; None where the folder has no index.

    Raises:
        BackendError: the index is damaged, or names a file outside of the folder.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    weight_map = read_json(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise BackendError(f"{path} is damaged: it has no weight_map of tensor names to files; download it again")
    outside = next((shard for shard in weight_map.values() if Path(shard).name != shard), None)
    if outside is not None:
        raise BackendError(f"{path} names a file outside the folder: {outside}")
    return weight_map


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        BackendError: it cannot be read, or is no object.
    """
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise BackendError(f"{file} is damaged: it cannot be read as JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise BackendError(f"{file} is damaged: it is not a JSON object; download it again")
    return value


def _tensors(raw: bytes) -> dict[str, StoredTensor]:
    start = _LENGTH + len(raw)
    tensors = {}
    for name, entry in json.loads(raw).items():
        if name != "__metadata__":
            begin, stop = map(index, entry["data_offsets"])
            if not 0 <= begin <= stop:
                raise ValueError(f"{name} lies at {begin}:{stop}")
            tensors[name] = StoredTensor(entry["dtype"], tuple(map(index, entry["shape"])), stop - begin, start + begin)
    return tensors


def _cut_short(file: Path, size: int, wanted: int) -> str:
    return f"{file} is cut short or damaged ({size} bytes, {wanted} expected); download it again"
