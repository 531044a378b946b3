"""Devices: what ONNX Runtime can compute on here. CUDA, DirectML and TensorRT-RTX are written after their
documentation: there was no GPU to run them on, so they are untested.

https://onnxruntime.ai/docs/execution-providers/ and, for providers that are packages of their own,
https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/usage.html
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pynvml

from backends import system_memory
from backends.stage import BackendError


@dataclass(frozen=True, slots=True)
class Device:
    """A device that ONNX Runtime computes on.

    Attributes:
        name: as `--device` names it, e.g. `cuda`.
        index: which one of several.
        provider: ONNX Runtime's name for what computes there.
        package: what brings it.
        target: the model builder's name for it.
        dtype: what is computed in, float32 or float16.
        memory: ONNX Runtime's name for where its arrays lie.
        plugin: the module that brings the provider, where it is a package of its own.
        addressable: a part of an array there can be named by its address.
    """

    name: str
    provider: str
    package: str
    target: str
    dtype: str
    memory: str
    plugin: str = ""
    addressable: bool = True
    index: int = 0

    def __str__(self) -> str:
        return self.name if self.name == "cpu" else f"{self.name}:{self.index}"


KNOWN = {
    device.name: device
    for device in (
        Device("tensorrt_rtx", "NvTensorRTRTXExecutionProvider", "onnxruntime-ep-nv-tensorrt-rtx", "trt-rtx", "float16",
               "cuda", "onnxruntime_ep_nv_tensorrt_rtx"),
        Device("cuda", "CUDAExecutionProvider", "onnxruntime-gpu", "cuda", "float16", "cuda"),
        Device("dml", "DmlExecutionProvider", "onnxruntime-directml", "dml", "float16", "dml", addressable=False),
        Device("cpu", "CPUExecutionProvider", "onnxruntime", "cpu", "float32", "cpu"),
    )
}  # fmt: skip


def find(name: str) -> Device:
    """The device of an option: `auto`, `cpu`, `cuda`, `cuda:1`, `dml` or `tensorrt_rtx`.

    `auto` takes CUDA or DirectML where the installed ONNX Runtime has one of them, the CPU otherwise.

    Raises:
        BackendError: there is no such device, or the installed ONNX Runtime cannot use it; the text says what can.
    """
    there = ort.get_available_providers()
    if name == "auto":
        return next(KNOWN[kind] for kind in ("cuda", "dml", "cpu") if KNOWN[kind].provider in there)
    kind, _, number = name.partition(":")
    known = KNOWN.get(kind)
    if known is None or (number and not number.isdecimal()):
        raise BackendError(f"there is no device {name!r} in ONNX Runtime; take auto, {', '.join(KNOWN)} or cuda:N")
    missing = f"this ONNX Runtime cannot compute on {kind}: pip install {known.package}, or take --device cpu"
    if known.plugin:
        if importlib.util.find_spec(known.plugin) is None:
            raise BackendError(missing)
    elif known.provider not in there:
        raise BackendError(f"{missing} (a build for one device takes the place of another: pip uninstall onnxruntime)")
    return Device(**{**{field: getattr(known, field) for field in Device.__slots__}, "index": int(number or 0)})


def session(device: Device, graph: bytes, data: Path, threads: int) -> ort.InferenceSession:
    """Start a graph whose large tensors lie in files in the folder `data`.

    The threads do not spin between operators and steps: a server often shares its cores with others.

    Raises:
        BackendError: the provider does not start on this machine.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data))
    try:
        if device.plugin:
            _add_plugin(options, device, data)
            return ort.InferenceSession(graph, options)
        started = ort.InferenceSession(graph, options, providers=_providers(device))
    except (RuntimeError, ort.capi.onnxruntime_pybind11_state.EPFail) as error:
        raise BackendError(f"ONNX Runtime cannot start on {device}: {str(error).splitlines()[0]}") from error
    if device.provider not in started.get_providers():  # it goes on with the CPU when a library is missing
        raise BackendError(
            f"{device.provider} does not start on this machine (its driver or libraries are missing or too old); "
            "take --device cpu"
        )
    return started


def _providers(device: Device) -> Sequence[Any]:
    if device.name == "cpu":
        return [device.provider]
    return [(device.provider, {"device_id": str(device.index)}), "CPUExecutionProvider"]


def _add_plugin(options: ort.SessionOptions, device: Device, data: Path) -> None:
    """Add a provider that is a package of its own; engines that it compiles are kept beside the graphs."""
    module = importlib.import_module(device.plugin)
    found = [entry for entry in ort.get_ep_devices() if entry.ep_name == device.provider]
    if not found:
        ort.register_execution_provider_library(device.provider, module.get_library_path())
        found = [entry for entry in ort.get_ep_devices() if entry.ep_name == device.provider]
    if device.index >= len(found):
        raise BackendError(f"there is no device {device}: {device.package} finds {len(found)} GPUs here")
    engines = data / "engines"
    engines.mkdir(exist_ok=True)
    options.add_provider_for_devices([found[device.index]], {"nv_runtime_cache_path": str(engines)})


def free_memory(device: Device) -> int | None:
    """The bytes that the device has left; None for DirectML, which does not say, and where NVML is not there."""
    if device.memory == "cpu":
        return system_memory.available()
    if device.memory != "cuda":
        return None
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(device.index)).free)
    except pynvml.NVMLError:
        return None
