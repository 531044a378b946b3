"""Fingerprint: whether two machines hold the same model, told from a few kilobytes of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from backends import BackendError
from backends.checkpoint.headers import INDEX, read_raw_header
from swarm.errors import SwarmError
from swarm.models import gguf as ggufs
from swarm.models.shards import weight_map

_SAMPLES = 16
_SAMPLE = 4096  # bytes

# What a configuration says about itself, about training, or about how results are handed over; none of it changes
# what a block computes. `dtype` is the stored one, which the header of every shard states as well.
_IGNORED = frozenset(
    {
        "_attn_implementation",
        "_commit_hash",
        "_from_model_config",
        "_model_name_or_path",
        "_name_or_path",
        "attention_dropout",
        "chunk_size_feed_forward",
        "dtype",
        "embd_pdrop",
        "attn_pdrop",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


def fingerprint(folder: Path) -> dict[str, str]:
    """A short digest for each part of a model that is present: `config`, `index`, every `*.safetensors` by its name.
    Of a GGUF model it is the file alone, by its name.

    A shard's digest is made of its header (names, dtypes, shapes and places of all tensors), its size, and 4 KiB at
    each of 16 places spread evenly over its data, so a model of 100 GB costs some megabytes of reading. It tells apart
    other models, other fine-tunes and quantisations (which change nearly all weights), other ways of cutting into
    shards, and files that were cut short. It does not find a change that lies between the samples, such as a flipped
    bit or a patched tensor: it is a guard against mistakes, not against a file that is built to pass.

    Returns:
        16 hexadecimal digits for each part.

    Raises:
        OSError: a file cannot be read.
        SwarmError: a file is damaged; the text names it.
    """
    parts: dict[str, str] = {}
    pointer = folder / ggufs.POINTER
    if pointer.exists():
        # Its configuration is worked out from the file, so it need not be that of the same model in safetensors, and
        # files of several quantisations are the same model.
        gguf = Path(json.loads(pointer.read_text(encoding="utf-8"))["file"])
        return {gguf.name: _gguf(gguf)}
    config = folder / "config.json"
    if config.exists():
        try:
            content = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SwarmError(f"{config} is damaged ({error}): fetch the model again") from error
        parts["config"] = _digest(_canonical(_computing(content)))
    shards = weight_map(folder)
    if shards is not None:
        parts["index"] = _digest(_canonical(shards))
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            parts[path.name] = _shard(file, path)
    return parts


def conflict(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """The first part that both have and that differs; None where they agree on all that they share.

    The order is `config`, the index, then the shards by name, so the most telling part comes first.
    """
    order = {"config": 0, "index": 1}
    for part in sorted(mine.keys() & theirs.keys(), key=lambda name: (order.get(name, 2), name)):
        if mine[part] != theirs[part]:
            return INDEX if part == "index" else "config.json" if part == "config" else part
    return None


def _shard(file: BinaryIO, path: Path) -> str:
    try:
        header = read_raw_header(file, path)
    except BackendError as error:
        raise SwarmError(str(error)) from error
    size = os.fstat(file.fileno()).st_size
    digest = hashlib.sha256(size.to_bytes(8, "little") + header)
    start = file.tell()
    for at in sample_offsets(size - start):
        file.seek(start + at)
        digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def _gguf(path: Path) -> str:
    """Of the size, the first MiB, which begins with metadata, and samples of the rest."""
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))
        for at in sample_offsets(size):
            file.seek(at)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:16]


def sample_offsets(length: int) -> list[int]:
    """Where the samples of `length` bytes of data begin: the first at 0, the last one ends with the data."""
    last = max(0, length - _SAMPLE)
    return sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)})


def _computing(value: Any) -> Any:
    """A configuration without what does not compute; numbers that are equal look equal (`1.0` and `1`)."""
    if isinstance(value, dict):
        return {key: _computing(item) for key, item in value.items() if key not in _IGNORED}
    if isinstance(value, list):
        return [_computing(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
