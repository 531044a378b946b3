"""The backend `llama_cpp`: a span cut out of a model into a GGUF file of its own, run by an unmodified llama.cpp.

* `library` finds llama.cpp and declares what is used of it, `layouts` its structures;
* `source` is what is known of a model, whatever it is stored as: `resolve` finds out what a path means, `ggufs` and
  `folders` read it, `families` knows what llama.cpp calls the parts of a Hugging Face model;
* `architectures` says which of llama.cpp's architectures can be cut, and how;
* `precision` chooses the type of every tensor, `cut` writes a span;
* `engine` runs it, `stage` serves it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from backends.stage import BackendError, ModelInfo, Options, Span, Stage

__all__ = ["describe", "free_memory", "load", "missing", "refusal"]


def missing() -> str | None:
    """What has to be installed first; see `backends.stage.Backend.missing`."""
    from backends.llamacpp import library

    try:
        library.find()
    except BackendError as error:
        return str(error)
    return None


def describe(model: Path, options: Options | None = None) -> ModelInfo:
    """Read configuration and headers; see `backends.stage.Backend.describe`."""
    from backends.llamacpp import stage
    from backends.llamacpp.resolve import read

    source = read(Path(model))
    return source.info() if options is None else stage.held(source, options)


def refusal(model: Path, options: Options) -> str | None:
    """Why it should not be taken by itself; see `backends.stage.Backend.refusal`."""
    from backends.llamacpp import library, precision, stage
    from backends.llamacpp.resolve import read

    try:
        library.find()
        source = read(Path(model))
        precision.wanted(source, options.dtype, options.quantize)
        stage.kv_type(options.kv_dtype, source, options)
        device, gpu = stage.find_device(library.library(), options.device)
    except BackendError as error:
        return str(error)
    if options.device == "auto" and gpu is None and shutil.which("nvidia-smi"):
        return f"this build of llama.cpp computes on the {device} only"
    return None


def free_memory(options: Options) -> int | None:
    """The free bytes of the options' device; see `backends.stage.Backend.free_memory`."""
    from backends.llamacpp import library, stage

    lib = library.library()
    return lib.free_memory(stage.find_device(lib, options.device)[1])


def load(model: Path, span: Span, options: Options) -> Stage:
    """Load a span; see `backends.stage.Backend.load`."""
    from backends.llamacpp.stage import load as start

    return start(Path(model), Span(*span), options)
