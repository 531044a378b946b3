"""The backend `llama_cpp`: a span cut out of a model into a GGUF file of its own, run by an unmodified llama.cpp.

* `library` finds llama.cpp and declares what is used of it, `layouts` its structures;
* `source` is what is known of a model, whatever it is stored as: `ggufs` and `folders` read it, `families` knows what
  llama.cpp calls the parts of a Hugging Face model;
* `architectures` says which of llama.cpp's architectures can be cut, and how;
* `precision` chooses the type of every tensor, `cut` writes a span;
* `engine` runs it, `stage` serves it.
"""

from __future__ import annotations

from pathlib import Path

from backends.stage import ModelInfo, Options, Span, Stage

__all__ = ["describe", "load"]


def describe(model: Path) -> ModelInfo:
    """Read configuration and headers; see `backends.stage.Backend.describe`."""
    from backends.llamacpp import library
    from backends.llamacpp.source import read

    library.find()
    return read(Path(model)).info()


def load(model: Path, span: Span, options: Options) -> Stage:
    """Load a span; see `backends.stage.Backend.load`."""
    from backends.llamacpp.stage import load as start

    return start(Path(model), Span(*span), options)
