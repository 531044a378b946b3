"""Weight source: what is known of a model, whatever it is stored as, in llama.cpp's terms."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gguf import GGMLQuantizationType, GGUFValueType

from backends.stage import Array, BackendError, ModelInfo

Type: TypeAlias = GGMLQuantizationType

EMBEDDING, NORM, HEAD = "token_embd.weight", "output_norm.weight", "output.weight"


@dataclass(frozen=True, slots=True)
class MetadataValue:
    """An entry of a GGUF's metadata; `items` is the type of an array's entries."""

    value: Any
    type: GGUFValueType
    items: GGUFValueType | None = None


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor by its name in GGUF.

    Attributes:
        shape: as NumPy has it; the last dimension is that of a row.
        type: what it is stored as.
        nbytes: how much of the disk it takes.
        parts: gives it in pieces, mapped where that can be: arrays of the stored dtype, or of bytes where `type` is one
            of llama.cpp's own.
    """

    name: str
    shape: tuple[int, ...]
    type: Type
    nbytes: int
    parts: Callable[[], Iterator[Array]]

    @property
    def block(self) -> int | None:
        """The block that it belongs to; None: to none."""
        return int(self.name.split(".")[1]) if self.name.startswith("blk.") else None


@dataclass(frozen=True)
class WeightSource:
    """A model in llama.cpp's terms, whatever it is stored as.

    Attributes:
        path: the file or folder, for messages.
        files: what it was read from; they identify it in the cache.
        name: of the model's class, for people.
        architecture: llama.cpp's word.
        metadata: without the tokenizer's.
        dtype: what most of it is stored as.
    """

    path: Path
    files: tuple[Path, ...]
    name: str
    architecture: str
    blocks: int
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, SourceTensor]
    dtype: str

    def number(self, key: str, default: float | None = None) -> Any:
        """A number of the metadata, by its name after the architecture's.

        Raises:
            BackendError: it is not there and has no default.
        """
        value = self.metadata.get(f"{self.architecture}.{key}")
        if value is None:
            if default is None:
                raise BackendError(f"{self.path} does not say {self.architecture}.{key}; download it again")
            return default
        return max(value.value) if isinstance(value.value, list) else value.value

    @property
    def hidden_size(self) -> int:
        return int(self.number("embedding_length"))

    @property
    def vocab_size(self) -> int:
        return self.tensors[EMBEDDING].shape[0]

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head as well."""
        return HEAD not in self.tensors

    @property
    def kv_elements(self) -> int:
        """Numbers that one token takes in one block's KV cache."""
        heads = int(self.number("attention.head_count"))
        width = self.hidden_size // heads
        keys, values = (int(self.number(f"attention.{kind}_length", width)) for kind in ("key", "value"))
        return int(self.number("attention.head_count_kv", heads)) * (keys + values)

    def info(self, size: Callable[[SourceTensor], int] = lambda tensor: tensor.nbytes) -> ModelInfo:
        """Args: size: of a tensor, in bytes; by default what it takes of the disk."""
        sizes = [0] * self.blocks
        for tensor in self.tensors.values():
            if tensor.block is not None and tensor.block < self.blocks:
                sizes[tensor.block] += size(tensor)
        tail = size(self.tensors[NORM]) + size(self.tensors[EMBEDDING if self.tied else HEAD])
        return ModelInfo(
            architecture=self.name,
            blocks=self.blocks,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            context_length=int(self.number("context_length", 0)),
            dtype=self.dtype,
            block_bytes=tuple(sizes),
            edge_bytes=(size(self.tensors[EMBEDDING]), tail),
            kv_bytes_per_token=self.kv_elements * (4 if self.dtype == "float32" else 2),
        )

    def digest(self) -> str:
        """Tells this model from others in the cache: by its files' places, sizes and times."""
        facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
