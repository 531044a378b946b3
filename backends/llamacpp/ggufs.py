"""GGUF files: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGUFReader, GGUFValueType

from backends.llamacpp.source import MetadataValue, SourceTensor, Type, WeightSource
from backends.stage import Array, BackendError

POINTER = "gguf.json"  # names the file of a model whose tokenizer was taken out of it
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_NAMES = {Type.F32: "float32", Type.F16: "float16", Type.BF16: "bfloat16"}


def inside(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, the one that a folder points to, or the only one in it; None: no GGUF.

    Raises:
        BackendError: it is not there any longer, or there are several models.
    """
    if path.is_file():
        return path
    if (path / POINTER).is_file():
        file = Path(json.loads((path / POINTER).read_text(encoding="utf-8"))["file"])
        if not file.is_file():
            raise BackendError(f"{file} is gone, which {path} was made from; put it back or give its new place")
        return file
    if any(path.glob("*.safetensors")):
        return None
    files = [
        file for file in sorted(path.glob("*.gguf")) if not (part := _PART.search(file.name)) or part[1] == "00001"
    ]
    if len(files) > 1:
        raise BackendError(
            f"{path} holds {len(files)} GGUF models; give the file: {', '.join(f.name for f in files[:4])}"
        )
    return files[0] if files else None


def read(file: Path) -> WeightSource:
    """Read metadata and the places of the tensors; the data stays on the disk.

    Raises:
        BackendError: it is no GGUF file, is damaged, or holds no language model.
    """
    files = _parts(file)
    try:
        readers = [GGUFReader(part) for part in files]
    except (ValueError, OSError, IndexError) as error:
        raise BackendError(f"{file} is no GGUF file, or it is cut short ({error}); download it again") from error
    metadata = {
        key: MetadataValue(
            field.contents(), field.types[0], field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        )
        for key, field in readers[0].fields.items()
        if not key.startswith(("GGUF.", "tokenizer.", "split."))
    }
    if "general.architecture" not in metadata:
        raise BackendError(f"{file} does not say which architecture it has; take another file of the model")
    architecture = str(metadata["general.architecture"].value)
    count = metadata.get(f"{architecture}.block_count")
    if count is None:
        raise BackendError(f"{file} is no language model ({architecture})")
    tensors = {tensor.name: _tensor(tensor) for reader in readers for tensor in reader.tensors}
    sizes: dict[Type, int] = {}
    for tensor in tensors.values():
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.nbytes
    most = max(sizes, key=lambda kind: sizes[kind]) if sizes else Type.F32
    dtype = _NAMES.get(most, most.name.lower())
    return WeightSource(file, tuple(files), architecture, architecture, int(count.value), metadata, tensors, dtype)


def _parts(file: Path) -> list[Path]:
    found = _PART.search(file.name)
    if not found:
        return [file]
    stem, count = file.name[: found.start()], int(found[2])
    parts = [file.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = next((part.name for part in parts if not part.is_file()), None)
    if missing:
        raise BackendError(f"{missing} is missing beside {file}; download it")
    return parts


def _tensor(stored: Any) -> SourceTensor:
    shape = tuple(int(size) for size in reversed(stored.shape))

    def parts() -> Iterator[Array]:
        data = stored.data
        if stored.tensor_type == Type.BF16:
            data = data.view(ml_dtypes.bfloat16)
        yield np.asarray(data)

    return SourceTensor(str(stored.name), shape, Type(stored.tensor_type), int(stored.n_bytes), parts)
