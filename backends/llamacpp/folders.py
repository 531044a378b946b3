"""Hugging Face folders (`config.json` and safetensors) in llama.cpp's terms. Nothing but headers is read here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from gguf import GGUFValueType

from backends.checkpoint import files  # knows the format, and no tensor library
from backends.checkpoint.headers import StoredTensor
from backends.llamacpp import families
from backends.llamacpp.source import MetadataValue, SourceTensor, Type, WeightSource
from backends.stage import Array, BackendError

_TYPES = {"float32": Type.F32, "float16": Type.F16, "bfloat16": Type.BF16}
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}


def read(path: Path) -> WeightSource:
    """
    Raises:
        BackendError: no model there, or a family whose mapping to llama.cpp is not known here.
    """
    folder = files.read(path)
    family = families.find(folder.config, path)
    names = family.names(folder.config)
    merged: dict[str, list[str]] = {}  # name in GGUF: the stored tensors that it is made of, in order
    for stored in folder.weight_map:
        if (name := names(stored)) is not None:
            merged.setdefault(name, []).append(stored)
    for several in merged.values():
        several.sort(key=families.expert)
    opened = _Opened(path)
    sizes = _Sizes(folder)
    dtype = folder.stored_dtype([next(iter(_first_block(folder, merged)))])
    tensors: dict[str, SourceTensor] = {}
    for name, several in merged.items():
        shapes, nbytes = zip(*(sizes.of(stored) for stored in several), strict=True)
        shape = shapes[0] if name.count("_exps") == 0 else (len(several), *shapes[0])
        read_one = partial(_parts, opened, folder, several, family.mended(folder.config, name))
        tensors[name] = SourceTensor(name, tuple(shape), _TYPES[dtype], sum(nbytes), read_one)
    for name, array in family.made(folder.config).items():
        tensors[name] = SourceTensor(name, array.shape, Type.F32, 0, partial(iter, [array]))
    architectures = folder.config.get("architectures") or [family.architecture]
    return WeightSource(
        path,
        tuple(
            sorted({path / "config.json", *(path / shard for shard in set(folder.weight_map.values()))} & _there(path))
        ),
        str(architectures[0]),
        family.architecture,
        int(folder.config["num_hidden_layers"]),
        {
            "general.architecture": MetadataValue(family.architecture, GGUFValueType.STRING),
            **{f"{family.architecture}.{key}": value for key, value in family.metadata(folder.config).items()},
        },
        tensors,
        dtype,
    )


def _there(path: Path) -> set[Path]:
    return set(path.iterdir())


def _first_block(folder: files.ModelFolder, merged: dict[str, list[str]]) -> list[str]:
    """A stored matrix whose file is there (a server may hold its own part of a model only)."""
    for name, several in merged.items():
        if name.endswith("attn_output.weight") and (folder.path / folder.weight_map[several[0]]).is_file():
            return several
    raise BackendError(f"{folder.path} has none of the files with the model's blocks; the download may not be complete")


class _Sizes:
    """Shapes and sizes; of files that are not there, those of the same tensor in another block."""

    def __init__(self, folder: files.ModelFolder) -> None:
        self._folder = folder
        self._alike: dict[str, tuple[tuple[int, ...], int]] = {}

    def of(self, name: str) -> tuple[tuple[int, ...], int]:
        alike = ".".join(part for part in name.split(".") if not part.isdecimal())
        if (self._folder.path / self._folder.weight_map[name]).is_file():
            tensor = self._folder.tensor(name)
            self._alike[alike] = tensor.shape, tensor.nbytes
        elif alike not in self._alike:
            other = next((n for n in self._folder.weight_map if self._is_there(n) and _alike(n) == alike), None)
            if other is None:
                return (0, 0), 0
            tensor = self._folder.tensor(other)
            self._alike[alike] = tensor.shape, tensor.nbytes
        return self._alike[alike]

    def _is_there(self, name: str) -> bool:
        return (self._folder.path / self._folder.weight_map[name]).is_file()


def _alike(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.isdecimal())


class _Opened:
    """Safetensors files, mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, Array] = {}

    def tensor(self, shard: str, name: str, stored: StoredTensor) -> Array:
        if shard not in self._files:
            self._files[shard] = np.memmap(self._path / shard, np.uint8, "r")
        if stored.dtype not in _DTYPES:
            raise BackendError(f"{self._path / shard} holds {name} as {stored.dtype}, which cannot be converted")
        data = self._files[shard][stored.offset : stored.offset + stored.nbytes]
        return np.frombuffer(data, _DTYPES[stored.dtype]).reshape(stored.shape)


def _parts(
    opened: _Opened, folder: files.ModelFolder, several: list[str], mend: Callable[[Array], Array] | None
) -> Iterator[Array]:
    for name in several:
        array = opened.tensor(folder.weight_map[name], name, folder.tensor(name))
        yield mend(array) if mend else array
