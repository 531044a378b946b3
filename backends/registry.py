"""Backend registry: backends by their names, the entry points of the group `swarm.backends`."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast

from backends.stage import Backend, BackendError, ModelInfo, Options

GROUP = "swarm.backends"
DEFAULT = "transformers"
AUTO = "auto"
FASTEST_FIRST = ("llama_cpp", "onnx", DEFAULT)  # by benchmarks/peers.py and benchmarks/limit.py

# These are there also where the distribution is not installed (running from a source tree).
_BUILT_IN = {
    DEFAULT: "backends.huggingface",
    "llama_cpp": "backends.llamacpp",
    "onnx": "backends.ort",
    "petals": "backends.upstream",
}


def _found() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """Names of the backends, the default first; what they wrap need not be installed."""
    return sorted({*_BUILT_IN, *_found()}, key=lambda name: (name != DEFAULT, name))


def find(name: str) -> Backend:
    """The backend of this name.

    Raises:
        BackendError: it is not installed, or what it wraps is not; the text says what to install.
    """
    try:
        if point := _found().get(name):
            backend = cast(Backend, point.load())
        elif module := _BUILT_IN.get(name):
            backend = cast(Backend, importlib.import_module(module))
        else:
            raise BackendError(f"there is no backend {name!r}; take {', '.join(names())}")
    except ImportError as error:
        raise BackendError(f"the backend {name} cannot start: {error}") from error
    if reason := backend.missing():
        raise BackendError(reason)
    return backend


def describe(name: str, model: Path) -> ModelInfo:
    """What the backend of this name knows of a model; for `auto`, what the first does that knows it.

    Raises:
        BackendError: it cannot compute the model; for `auto` the text says why the default one cannot.
    """
    if name != AUTO:
        return find(name).describe(model)
    reasons: dict[str, BackendError] = {}
    for each in FASTEST_FIRST:
        try:
            return find(each).describe(model)
        except BackendError as error:
            reasons[each] = error
    raise reasons[DEFAULT]


def fastest(model: Path, options: Options) -> tuple[str, dict[str, str]]:
    """The fastest backend that computes the model as the options ask, and why not those that are faster.

    Raises:
        BackendError: none does; the text says why the default one does not.
    """
    reasons: dict[str, str] = {}
    for name in FASTEST_FIRST:
        try:
            reason = find(name).refusal(model, options)
        except BackendError as error:
            reason = str(error)
        if reason is None:
            return name, reasons
        reasons[name] = reason
    raise BackendError(reasons[DEFAULT])
