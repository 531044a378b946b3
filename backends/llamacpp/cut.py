"""Span cutting: a span as a GGUF file of its own, written once and kept.

Blocks are renumbered from 0 and lists with an entry per block are cut. Embedding and head are there only where the
span needs them; where llama.cpp wants a tensor all the same, the file has a hole in its place, which takes no room on
the disk and is never read. So has the block behind the last one of a span that is not the tail: its input is the hidden
states that are asked for. (A block of zeros hands on what it is given, so it does no harm where it is computed.)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from gguf import GGUFValueType, GGUFWriter

from backends import disk_space
from backends.artifact_cache import ArtifactEntry, ArtifactLabel
from backends.llamacpp import precision
from backends.llamacpp.architectures import architecture
from backends.llamacpp.library import Library
from backends.llamacpp.source import EMBEDDING, HEAD, NORM, MetadataValue, SourceTensor, Type, WeightSource
from backends.stage import Array, BackendError, Span

FORMAT = 2  # of what is written here; another one is cut anew
_NO_VOCABULARY = 32  # entries of an embedding that no token uses
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SpanPiece:
    """A tensor of the file that is written. `source` None: a hole."""

    name: str
    shape: tuple[int, ...]
    type: Type
    source: SourceTensor | None

    @property
    def nbytes(self) -> int:
        return precision.nbytes(self.shape, self.type)


@dataclass(frozen=True)
class CutPlan:
    """Cut plan: what the file of a span holds; the holes come last."""

    metadata: dict[str, MetadataValue]
    pieces: list[SpanPiece]

    @property
    def weights(self) -> int:
        """Bytes of what is really there."""
        return sum(piece.nbytes for piece in self.pieces if piece.source)

    @property
    def read(self) -> int:
        """Bytes that are read for it."""
        return sum(piece.source.nbytes for piece in self.pieces if piece.source)


@dataclass(frozen=True)
class Cut:
    """A span's file, which stays while this lives."""

    file: Path
    plan: CutPlan
    entry: ArtifactEntry


def plan(source: WeightSource, span: Span, wanted: Type | None) -> CutPlan:
    """What the file of this span holds, with its matrices as `wanted` (None: as they are stored)."""
    first, last = span.start == 0, span.end == source.blocks
    behind = has_block_behind(source, span)
    real: list[SpanPiece] = []
    holes: list[SpanPiece] = []

    def add(name: str, tensor: SourceTensor) -> None:
        real.append(SpanPiece(name, tensor.shape, precision.type_of(tensor, source, wanted), tensor))

    embedding, norm = source.tensors[EMBEDDING], source.tensors[NORM]
    if first or (last and source.tied):
        add(EMBEDDING, embedding)
    elif last:
        holes.append(SpanPiece(EMBEDDING, embedding.shape, _least(embedding.shape[-1]), None))
    else:
        holes.append(SpanPiece(EMBEDDING, (_NO_VOCABULARY, embedding.shape[-1]), Type.F16, None))
    vocabulary = source.vocab_size if first or last else _NO_VOCABULARY
    if last:
        add(NORM, norm)
        if not source.tied:
            add(HEAD, source.tensors[HEAD])
    else:
        holes.append(SpanPiece(NORM, norm.shape, Type.F32, None))
        if architecture(source.architecture, source.blocks).headed:
            holes.append(SpanPiece(HEAD, (vocabulary, norm.shape[0]), _least(norm.shape[0]), None))
    for tensor in source.tensors.values():
        if tensor.block is None:
            if tensor.name not in (EMBEDDING, NORM, HEAD):
                add(tensor.name, tensor)
        elif span.start <= tensor.block < span.end:
            if 0 in tensor.shape:
                raise BackendError(f"{source.path}: the file with {tensor.name} is not there; download it")
            add(_renumbered(tensor.name, tensor.block - span.start), tensor)
            if tensor.block == span.end - 1 and behind:
                like = real[-1]
                holes.append(SpanPiece(_renumbered(tensor.name, span.end - span.start), like.shape, like.type, None))
    return CutPlan(_metadata(source, span, vocabulary), real + holes)


def has_block_behind(source: WeightSource, span: Span) -> bool:
    """Whether the span's file holds a block of zeros behind its own."""
    if span.end < source.blocks:
        return True
    windows = _windows(source)  # llama.cpp wants at least one where there can be one
    return windows is not None and not any(windows[span.start : span.end])


def _windows(source: WeightSource) -> list[bool] | None:
    """Which blocks attend to a window only; None: none does, and the file need not say so."""
    period = architecture(source.architecture, source.blocks).pattern
    given = source.metadata.get(f"{source.architecture}.attention.sliding_window_pattern")
    if not period or not source.number("attention.sliding_window", 0):
        return None
    if given is not None and isinstance(given.value, list):
        return list(map(bool, given.value))
    period = int(given.value) if given else period
    return [block % period < period - 1 for block in range(source.blocks)]


def _least(width: int) -> Type:
    return Type.Q4_0 if width % 32 == 0 else Type.F16


def _renumbered(name: str, block: int) -> str:
    return f"blk.{block}.{name.split('.', 2)[2]}"


def _metadata(source: WeightSource, span: Span, vocabulary: int) -> dict[str, MetadataValue]:
    name = source.architecture
    behind = has_block_behind(source, span)
    blocks = [*range(span.start, span.end), *([span.end - 1] if behind else [])]
    found = {key: value for key, value in source.metadata.items() if key.startswith(f"{name}.")}
    for key, value in found.items():
        if isinstance(value.value, list) and len(value.value) == source.blocks and not key.endswith("sections"):
            found[key] = MetadataValue([value.value[block] for block in blocks], value.type, value.items)
    if (windows := _windows(source)) is not None:
        own = windows[span.start : span.end] + [True] * behind
        found[f"{name}.attention.sliding_window_pattern"] = MetadataValue(own, GGUFValueType.ARRAY, GGUFValueType.BOOL)
    if span.start > 0:
        found.pop(f"{name}.embedding_scale", None)  # hidden states are scaled already
    found[f"{name}.block_count"] = MetadataValue(len(blocks), GGUFValueType.UINT32)
    found[f"{name}.vocab_size"] = MetadataValue(vocabulary, GGUFValueType.UINT32)
    found["tokenizer.ggml.model"] = MetadataValue("no_vocab", GGUFValueType.STRING)
    return found


def cut(
    source: WeightSource,
    span: Span,
    wanted: Type | None,
    cache: Path | None,
    library: Library,
    threads: int,
    progress: Progress,
) -> Cut:
    """The file of a span, made unless it is there. Several processes may ask: one works, others wait.

    Args:
        cache: see `backends.artifact_cache`.
        progress: gets bytes read so far, and in all.

    Raises:
        BackendError: no room on the disk, or a file of the model is damaged.
    """
    content = plan(source, span, wanted)
    kind = wanted.name.lower() if wanted is not None else source.dtype
    with disk_space.written(cache or Path(tempfile.gettempdir()), content.weights, f"cut out blocks {span}"):
        entry = ArtifactEntry(cache, f"{source.digest()}-gguf{FORMAT}", f"{span.start}-{span.end}-{kind}")
        path = entry.path / "span.gguf"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                disk_space.require(entry.path, content.weights)
                _write(content, source, path, library, threads, progress)
        entry.label(ArtifactLabel(str(source.path), "llama_cpp", str(span), kind))
    progress(content.read, content.read)
    return Cut(path, content, entry)


def _write(
    content: CutPlan, source: WeightSource, path: Path, library: Library, threads: int, progress: Progress
) -> None:
    work = path.with_name(f".{path.stem}-{os.getpid()}.tmp")
    writer = GGUFWriter(None, source.architecture)
    for key, value in content.metadata.items():
        writer.add_key_value(key, value.value, value.type, sub_type=value.items)
    for piece in content.pieces:
        writer.add_tensor_info(piece.name, piece.shape, np.dtype(np.float32), piece.nbytes, raw_dtype=piece.type)
    try:
        writer.write_header_to_file(work)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        (file,) = writer.fout
        writer.write_padding(file, file.tell())
        done = 0
        with ThreadPoolExecutor(threads) as workers:
            for piece in content.pieces:
                size = GGUFWriter.ggml_pad(piece.nbytes, writer.data_alignment)
                end = file.tell() + size
                for some in _bytes(piece, library, workers):
                    file.write(some)
                done += piece.source.nbytes if piece.source else 0
                progress(done, content.read)
                file.seek(end)
            file.truncate(file.tell())
        writer.close()
        work.replace(path)
    finally:
        writer.close()
        work.unlink(missing_ok=True)


def _bytes(piece: SpanPiece, library: Library, workers: ThreadPoolExecutor) -> Iterator[Any]:
    if piece.source is None:
        return
    for some in precision.data(piece.source, piece.type, library, workers):
        array: Array = np.ascontiguousarray(some)
        yield array.reshape(-1).view(np.uint8).data
