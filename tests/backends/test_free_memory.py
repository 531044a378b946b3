"""Each backend answers for the device that it would compute on, and main memory is no answer for a card."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from backends import Backend, BackendError, ModelInfo, Options, registry, system_memory
from swarm.errors import SwarmError
from swarm.server import loading
from swarm.server.program import ServerSettings

MAIN, CARD = 64 << 30, 7 << 30


@pytest.fixture(autouse=True)
def main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_memory, "available", lambda: MAIN)


def find(name: str) -> Backend:
    try:
        return registry.find(name)
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["transformers", "llama_cpp", "onnx"])
def test_the_cpu_has_main_memory(name: str) -> None:
    assert find(name).free_memory(Options(device="cpu")) == MAIN


@pytest.mark.parametrize("name", ["transformers", "llama_cpp", "onnx"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(BackendError, match="no device 'abacus'"):
        find(name).free_memory(Options(device="abacus"))


@pytest.mark.parametrize(("cuda", "free"), [(True, CARD), (False, MAIN)])
def test_torch_is_asked_for_what_auto_means_to_it(cuda: bool, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (CARD, 2 * CARD))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert find("transformers").free_memory(Options(device="auto")) == free


def test_torch_on_a_mac_has_what_its_gpu_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: CARD + 5)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5)
    assert find("transformers").free_memory(Options(device="auto")) == CARD


@pytest.mark.parametrize(
    ("gpus", "total", "free"),
    [
        ({}, 0, MAIN),  # a build for CPUs, whatever cards the machine has
        ({"CUDA0": 1}, 2 * CARD, CARD),
        ({"Vulkan0": 1}, 2 * CARD, CARD),
        ({"ROCm0": 1}, 0, None),  # its driver does not say
    ],
)
def test_llama_cpp_asks_ggml_for_the_device_that_it_would_use(
    gpus: dict[str, int], total: int, free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    find("llama_cpp")
    from backends.llamacpp import library

    def memory(device: int, free: Any, size: Any) -> None:
        for pointer, value in ((free, min(total, CARD)), (size, total)):
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_size_t))[0] = value

    lib = library.Library.__new__(library.Library)
    monkeypatch.setattr(lib, "devices", lambda: gpus)
    monkeypatch.setattr(lib, "ggml_backend_dev_memory", memory, raising=False)
    monkeypatch.setattr(library, "library", lambda: lib)
    assert find("llama_cpp").free_memory(Options(device="auto")) == free


@pytest.mark.parametrize(
    ("provider", "free"),
    [("CUDAExecutionProvider", CARD), ("DmlExecutionProvider", None), ("AzureExecutionProvider", MAIN)],
)
def test_onnx_runtime_is_asked_by_its_provider(
    provider: str, free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    find("onnx")
    from backends.ort import devices

    monkeypatch.setattr(devices.ort, "get_available_providers", lambda: [provider, "CPUExecutionProvider"])
    monkeypatch.setattr(devices.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(devices.pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(devices.pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(free=CARD))
    assert find("onnx").free_memory(Options(device="auto")) == free


def test_a_card_without_its_driver_library_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    find("onnx")
    from backends.ort import devices

    def absent() -> None:
        raise devices.pynvml.NVMLError(devices.pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(devices.pynvml, "nvmlInit", absent)
    assert devices.free_memory(devices.KNOWN["cuda"]) is None


def settings(**options: Any) -> ServerSettings:
    return ServerSettings("tiny", "", **options)


def asked(monkeypatch: pytest.MonkeyPatch, free: int | None) -> list[Options]:
    """Have one backend, whose device has this much free; gives the options that it is asked with."""
    options: list[Options] = []
    backend = SimpleNamespace(free_memory=lambda each: options.append(each) or free)
    monkeypatch.setattr(registry, "find", lambda name: backend)
    return options


INFO = ModelInfo("Tiny", 4, 8, 16, 64, "float32", (1 << 20,) * 4, (0, 0), 1)


def test_the_backend_says_what_a_span_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    options = asked(monkeypatch, loading.RESERVE + (10 << 20))
    assert loading.capacity_of(INFO, settings(device="vulkan:1", kv_tokens=1), "tiny") == 9
    assert [each.device for each in options] == ["vulkan:1"]


def test_an_unknown_card_asks_for_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, None)
    with pytest.raises(SwarmError, match=r"--device dml is unknown.*--blocks START:END"):
        loading.capacity_of(INFO, settings(device="dml"), "tiny")


def test_an_unknown_card_has_the_least_room_for_tokens(caplog: pytest.LogCaptureFixture) -> None:
    stage: Any = SimpleNamespace(device="dml:0", kv_bytes_per_token=1, memory=lambda: SimpleNamespace(free=None))
    assert loading._default_kv_tokens(stage) == loading.KV_LEAST
    assert "free memory of dml:0 is unknown" in caplog.text and "--kv-tokens" in caplog.text
