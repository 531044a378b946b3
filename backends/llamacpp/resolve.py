"""Model resolution: what a path means, a GGUF file or a Hugging Face folder, as one weight source."""

from __future__ import annotations

from pathlib import Path

from backends.llamacpp import folders, ggufs
from backends.llamacpp.architectures import architecture
from backends.llamacpp.source import EMBEDDING, NORM, WeightSource
from backends.stage import BackendError


def read(path: Path) -> WeightSource:
    """The model in a GGUF file, a folder with one (or `gguf.json`, which names it), or a Hugging Face folder.

    Raises:
        BackendError: there is no model, or not one that llama.cpp knows in spans.
    """
    file = ggufs.inside(path)
    source = ggufs.read(file) if file is not None else folders.read(path)
    architecture(source.architecture, source.blocks)
    missing = [name for name in (EMBEDDING, NORM) if name not in source.tensors]
    if missing:
        raise BackendError(f"{path} has no tensor {missing[0]}; the download may not be complete")
    return source
