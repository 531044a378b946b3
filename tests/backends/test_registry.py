"""Backends are found by name."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from backends import BackendError, Options, registry


def entry_points(**points: str) -> object:
    found = [EntryPoint(name, module, registry.GROUP) for name, module in points.items()]
    return lambda group: found if group == registry.GROUP else []


def test_the_default_is_there_without_an_installed_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", entry_points())
    assert registry.names() == ["transformers", "llama_cpp", "onnx", "petals"]
    assert callable(registry.find("transformers").load)


def test_an_entry_point_adds_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    points = entry_points(another="backends.huggingface", transformers="backends.huggingface")
    monkeypatch.setattr(registry, "entry_points", points)
    assert registry.names() == ["transformers", "another", "llama_cpp", "onnx", "petals"]
    assert registry.find("another") is registry.find("transformers")


def test_a_backend_that_is_not_there_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", entry_points(another="a_module_that_is_not_installed"))
    with pytest.raises(BackendError, match=r"'vllm'; take transformers, another, llama_cpp, onnx, petals$"):
        registry.find("vllm")
    with pytest.raises(BackendError, match="another cannot start: No module named 'a_module_that_is_not_installed'"):
        registry.find("another")


@pytest.mark.parametrize(
    ("name", "module", "says"),
    [
        ("transformers", "torch", "no torch.*: pip install layerswarm$"),
        ("llama_cpp", "xllamacpp", r"no llama\.cpp here: pip install layerswarm\[llama-cpp\]"),
        ("onnx", "onnxruntime_genai", r"\(onnxruntime_genai\): pip install layerswarm\[onnx\]"),
        ("petals", "petals", r"python bootstrap\.py petals"),
    ],
)
def test_a_backend_without_its_library_is_not_found(
    name: str, module: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is known before a model is fetched for it."""
    monkeypatch.delenv("SWARM_LIBLLAMA", raising=False)
    for each in (module, "llama_cpp", "llama_cpp_py_sync"):
        monkeypatch.setitem(sys.modules, each, None)
    with pytest.raises(BackendError, match=says):
        registry.find(name)


@pytest.mark.parametrize("name", ["transformers", "llama_cpp", "onnx", "petals"])
def test_importing_a_backend_imports_no_tensor_library(name: str) -> None:
    code = (
        "import contextlib, sys; from backends import BackendError, registry\n"
        f"with contextlib.suppress(BackendError): registry.find({name!r})\n"
        "print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class Engine:
    """A backend that computes nothing, and says why it should not be taken."""

    def __init__(self, reason: str | None) -> None:
        self._reason = reason

    def refusal(self, model: Path, options: Options) -> str | None:
        return self._reason

    def describe(self, model: Path) -> str:
        if self._reason is not None:
            raise BackendError(self._reason)
        return str(model)


def among(monkeypatch: pytest.MonkeyPatch, **reasons: str | None) -> None:
    """Have these backends, which refuse everything for these reasons."""

    def find(name: str) -> Engine:
        if name not in reasons:
            raise BackendError("not installed")
        return Engine(reasons[name])

    monkeypatch.setattr(registry, "find", find)


def test_the_fastest_backend_that_does_not_refuse_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    among(monkeypatch, transformers=None, llama_cpp=None)
    assert registry.fastest(Path(), Options()) == ("llama_cpp", {})
    among(monkeypatch, transformers=None, llama_cpp="it does not know the family")
    reasons = {"llama_cpp": "it does not know the family", "onnx": "not installed"}
    assert registry.fastest(Path(), Options()) == ("transformers", reasons)
    among(monkeypatch, transformers="no weights there")
    with pytest.raises(BackendError, match="no weights there"):
        registry.fastest(Path(), Options())


def test_auto_describes_a_model_by_whichever_backend_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    among(monkeypatch, transformers="a GGUF file", onnx=None)
    assert str(registry.describe("auto", Path("model"))) == "model"
    with pytest.raises(BackendError, match="a GGUF file"):
        registry.describe("transformers", Path("model"))
    among(monkeypatch, transformers="no weights there", onnx="another reason")
    with pytest.raises(BackendError, match="no weights there"):
        registry.describe("auto", Path("model"))
