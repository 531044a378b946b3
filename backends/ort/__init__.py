"""The backend `onnx`: every block compiled once into an ONNX graph, and the graphs of a span joined into one session.

* `devices` finds what ONNX Runtime can compute on here, by the names that `--device` takes;
* `builder` has onnxruntime-genai's model builder write the graph of one block or of what follows the last, `export`
  (with `products`) has torch write it for families that the builder does not know; `families` says which;
* `compiled` keeps those graphs on the disk, `graphs` reads, writes and joins them;
* `places` holds keys and values, `engine` runs a joined graph, `stage` serves a span.

Blocks and the LM head run in ONNX Runtime. The embedding does not: it is a look-up of a few rows in a table that stays
in the model's own file, where a graph would hold a copy of all of it in memory.
"""

from __future__ import annotations

from pathlib import Path

from backends.stage import BackendError, ModelInfo, Options, Span, Stage

__all__ = ["describe", "load", "refusal"]

_NEEDS = "the onnx backend needs more packages ({}): pip install layerswarm[onnx]"


def describe(model: Path) -> ModelInfo:
    """Read configuration and headers; see `backends.stage.Backend.describe`."""
    try:
        from backends.ort.stage import describe as read
    except ImportError as error:
        raise BackendError(_NEEDS.format(error)) from error
    return read(Path(model))


def refusal(model: Path, options: Options) -> str | None:
    """Why it should not be taken by itself; see `backends.stage.Backend.refusal`."""
    try:
        from backends.ort.stage import refusal as reason
    except ImportError as error:
        return _NEEDS.format(error)
    return reason(Path(model), options)


def load(model: Path, span: Span, options: Options) -> Stage:
    """Load a span; see `backends.stage.Backend.load`."""
    try:
        from backends.ort.stage import load as start
    except ImportError as error:
        raise BackendError(_NEEDS.format(error)) from error
    return start(Path(model), Span(*span), options)
