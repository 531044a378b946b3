"""Free memory is that of the device on which a span would lie, as the engine resolves `--device`, or it is unknown."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from backends import BackendError, Options, registry
from swarm.errors import SwarmError
from swarm.server import loading
from swarm.server.program import ServerSettings

CARD = 11_000_000_000  # bytes; no machine that runs this has just as many free


def backend(name: str) -> Any:
    try:
        return registry.find(name)
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["transformers", "llama_cpp", "onnx"])
def test_on_the_processor_it_is_what_the_system_can_give(name: str) -> None:
    found = backend(name).free_memory(Options(device="cpu"))
    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize("name", ["transformers", "llama_cpp", "onnx"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(BackendError, match="device"):
        backend(name).free_memory(Options(device="cuda:7"))


def test_torch_is_asked_about_the_card_that_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (CARD, 2 * CARD))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert backend("transformers").free_memory(Options()) == CARD
    assert backend("transformers").free_memory(Options(device="cpu")) != CARD


@pytest.mark.parametrize("card", ["CUDA0", "Vulkan0", "ROCm0"])
def test_llama_cpp_asks_the_card_that_it_would_use_whoever_made_it(monkeypatch: pytest.MonkeyPatch, card: str) -> None:
    llama = backend("llama_cpp")
    from backends.llamacpp.library import library

    loaded = library()

    def say(handle: int, free: Any, total: Any) -> None:
        assert handle == 42
        free._obj.value = CARD

    monkeypatch.setattr(loaded, "devices", lambda: {card: 42})
    monkeypatch.setattr(loaded, "ggml_backend_dev_memory", say)
    assert isinstance(ctypes.byref(ctypes.c_size_t())._obj, ctypes.c_size_t)  # type: ignore[attr-defined]
    assert llama.free_memory(Options()) == CARD
    monkeypatch.setattr(loaded, "devices", dict)  # a card is there, but this build computes on the processor
    assert llama.free_memory(Options()) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_onnx_asks_nvidias_library_for_cuda_and_knows_nothing_of_directml(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = backend("onnx")
    from backends.ort import devices

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(devices.ort, "get_available_providers", lambda: providers)
    monkeypatch.setattr(devices.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(devices.pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(devices.pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(free=CARD + handle))
    assert onnx.free_memory(Options()) == CARD
    assert onnx.free_memory(Options(device="cuda:1")) == CARD + 1
    providers[0] = "DmlExecutionProvider"
    assert onnx.free_memory(Options()) is None
    wishes = ServerSettings("tiny", "", backend="onnx", device="dml")
    with pytest.raises(SwarmError, match="--blocks"):
        loading.capacity_of(SimpleNamespace(), wishes, "tiny")  # type: ignore[arg-type]
