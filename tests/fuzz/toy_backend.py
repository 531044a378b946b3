"""The toy model of `tests.swarm.toy` as a backend, for the real programs: any folder with a config.json."""

from __future__ import annotations

from pathlib import Path

from backends import ModelInfo, Options, Span
from tests.swarm.toy import ToyStage

MODEL = "toy"


def missing() -> str | None:
    return None


def describe(model: Path, options: Options | None = None) -> ModelInfo:
    return ToyStage(Span(0, 1)).model


def load(model: Path, span: Span, options: Options) -> ToyStage:
    return ToyStage(span)


def make_folder(folder: Path) -> Path:
    """A folder that `swarm-server --backend toy` takes for a model."""
    path = folder / MODEL
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text("{}")
    return path
