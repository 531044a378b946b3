"""The backend `onnx`: every block compiled once into an ONNX graph, and the graphs of a span joined into one session.

* `devices` finds what ONNX Runtime can compute on here, by the names that `--device` takes;
* `builder` has onnxruntime-genai's model builder write the graph of one block or of what follows the last, `export`
  (with `operator_layers`) has torch write it for families that the builder does not know; `families` says which;
* `compiled` keeps those graphs on the disk, `graphs` reads, writes and joins them;
* `kv_cache` holds keys and values, `engine` runs a joined graph, `stage` serves a span.

Blocks and the LM head run in ONNX Runtime. The embedding does not: it is a look-up of a few rows in a table that stays
in the model's own file, where a graph would hold a copy of all of it in memory.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from backends.stage import BackendError, ModelInfo, Options, Span, Stage

__all__ = ["describe", "free_memory", "load", "missing", "refusal"]

_PACKAGES = ("onnxruntime", "onnxruntime_genai", "onnx", "onnx_ir", "onnxscript")
_NEEDS = "the onnx backend needs more packages ({}): pip install layerswarm[onnx]"


def missing() -> str | None:
    """What has to be installed first; see `backends.stage.Backend.missing`."""
    absent = [name for name in _PACKAGES if find_spec(name) is None]
    return _NEEDS.format(", ".join(absent)) if absent else None


def describe(model: Path, options: Options | None = None) -> ModelInfo:
    """Read configuration and headers; see `backends.stage.Backend.describe`."""
    try:
        from backends.ort.stage import describe as read
        from backends.ort.stage import held
    except ImportError as error:
        raise BackendError(_NEEDS.format(error)) from error
    info = read(Path(model))
    return info if options is None else held(info, options)


def refusal(model: Path, options: Options) -> str | None:
    """Why it should not be taken by itself; see `backends.stage.Backend.refusal`."""
    try:
        from backends.ort.stage import refusal as reason
    except ImportError as error:
        return _NEEDS.format(error)
    return reason(Path(model), options)


def free_memory(options: Options) -> int | None:
    """The free bytes of the options' device; see `backends.stage.Backend.free_memory`."""
    try:
        from backends.ort import devices
    except ImportError as error:
        raise BackendError(_NEEDS.format(error)) from error
    return devices.free_memory(devices.find(options.device))


def load(model: Path, span: Span, options: Options) -> Stage:
    """Load a span; see `backends.stage.Backend.load`."""
    try:
        from backends.ort.stage import load as start
    except ImportError as error:
        raise BackendError(_NEEDS.format(error)) from error
    return start(Path(model), Span(*span), options)
