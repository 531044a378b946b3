"""The backend `petals`: upstream Petals' own blocks, `TransformerBackend` and `MemoryCache`, hosted by our server.

It needs the published `petals` in an environment of its own (`python bootstrap.py petals`), because upstream goes with
an older transformers. `patches` lets it run without hivemind, on Windows too. Upstream serves blocks only:

* `info` reads a model folder in upstream's terms;
* `edges` adds what comes before the first block and after the last, in plain torch;
* `cache` holds the KV caches of sessions in upstream's `MemoryCache`;
* `stage` runs a span.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

from backends.stage import BackendError, ModelInfo, Options, Span, Stage
from patches import PatchError, apply, registry

__all__ = ["describe", "free_memory", "load", "missing", "refusal"]

_NEEDS = "the petals backend cannot start: {}"


def missing() -> str | None:
    """What has to be installed first; see `backends.stage.Backend.missing`."""
    try:
        registry.installed()
    except PatchError as error:
        return _NEEDS.format(error)
    return None


def describe(model: Path, options: Options | None = None) -> ModelInfo:
    """Read configuration and safetensors headers; see `backends.stage.Backend.describe`. It holds what is stored."""
    _prepare()
    from backends.upstream.info import read

    return read(Path(model)).info


def refusal(model: Path, options: Options) -> str | None:
    """Never taken by itself: it lives in an environment of its own."""
    return "it is taken by name only"


def free_memory(options: Options) -> int | None:
    """The free bytes of the options' device; see `backends.stage.Backend.free_memory`."""
    try:
        from backends.torch_net import device
    except ImportError as error:
        raise BackendError(_NEEDS.format(error)) from error
    return device.free_memory(device.resolve_device(options.device))


def load(model: Path, span: Span, options: Options) -> Stage:
    """Load a span; see `backends.stage.Backend.load`."""
    _prepare()
    from backends.upstream.stage import load as start

    return start(Path(model), Span(*span), options)


def _prepare() -> None:
    try:
        apply()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions that are meant as they are
            importlib.import_module("petals")
    except (PatchError, ImportError) as error:
        raise BackendError(_NEEDS.format(error)) from error
