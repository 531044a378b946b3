"""The default backend, `transformers`: any causal language model that transformers knows, a span of it at a time.

The family's own code computes; this package only decides what is loaded and what is handed to it:

* `backends.checkpoint` reads the model folder (no tensor library);
* `backends.torch_net` builds the net without weights, learns how its forward treats its blocks, loads the tensors of a
  span, shrinks them, and runs a sub-range of the span;
* `stage` serves the span, `attention` and `cache` let one batch hold many sessions;
* `check` compares a block with the family's own forward, and `loading` does so before the span is served.

torch and transformers are imported on the first call, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from backends.stage import BackendError, ModelInfo, Options, Span, Stage

__all__ = ["describe", "free_memory", "load", "missing", "refusal"]

_NEEDS = "the transformers backend needs torch and transformers ({}): pip install layerswarm"


def missing() -> str | None:
    """What has to be installed first; see `backends.stage.Backend.missing`."""
    absent = [name for name in ("torch", "transformers") if find_spec(name) is None]
    return _NEEDS.format(f"there is no {absent[0]}") if absent else None


def describe(model: Path, options: Options | None = None) -> ModelInfo:
    """Read configuration and safetensors headers; see `backends.stage.Backend.describe`."""
    try:
        from backends.torch_net.info import describe as read
    except ImportError as error:
        raise BackendError(_NEEDS.format(error)) from error
    return read(Path(model), options)


def refusal(model: Path, options: Options) -> str | None:
    """Why it cannot compute the model as the options ask; see `backends.stage.Backend.refusal`."""
    if options.quantize not in (None, "int8", "nf4"):
        return f"there is no quantisation {options.quantize!r} in it; take int8 or nf4"
    try:
        describe(model)
    except BackendError as error:
        return str(error)
    return None


def free_memory(options: Options) -> int | None:
    """The free bytes of the options' device; see `backends.stage.Backend.free_memory`."""
    try:
        from backends.torch_net import device
    except ImportError as error:
        raise BackendError(_NEEDS.format(error)) from error
    return device.free_memory(device.resolve_device(options.device))


def load(model: Path, span: Span, options: Options) -> Stage:
    """Load a span; see `backends.stage.Backend.load`."""
    try:
        from backends.huggingface.loading import load as start
    except ImportError as error:
        raise BackendError(_NEEDS.format(error)) from error
    return start(Path(model), Span(*span), options)
