"""Devices, dtypes, and arrays on their way in and out of torch.

Everything for CUDA and MPS here is written after torch's documentation; it has been run on CPUs only.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress

import ml_dtypes
import numpy as np
import torch

from backends import system_memory
from backends.stage import Array, BackendError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def resolve_device(name: str) -> torch.device:
    """The device of an option: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        BackendError: there is no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise BackendError(f"there is no device {name!r}; take auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            built = "" if torch.version.cuda or torch.version.hip else " (the installed torch is built for CPUs only)"
            raise BackendError(f"this machine has no CUDA device that torch can use{built}; take --device cpu")
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise BackendError(f"there is no device {name}; this machine has cuda:0 to cuda:{count - 1}")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BackendError("this machine has no MPS device; take --device cpu")
    return device


def resolve_dtype(name: str, stored: str, device: torch.device) -> torch.dtype:
    """The dtype to compute in; `auto` is the stored one.

    Raises:
        BackendError: not a dtype, or one that torch cannot compute in on this device.
    """
    wanted = stored if name == "auto" else name
    if wanted == "float64":
        wanted = "float32"
    if wanted not in DTYPES:
        raise BackendError(f"there is no dtype {name!r}; take auto, float32, bfloat16 or float16")
    dtype = DTYPES[wanted]
    try:
        x = torch.ones(1, 2, 4, 8, dtype=dtype, device=device)
        y = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        torch.nn.functional.layer_norm(y @ x.transpose(2, 3), (4,)).softmax(-1)
    except RuntimeError as error:
        raise BackendError(f"torch cannot compute in {wanted} on {device} ({error}); take --dtype float32") from error
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    return _NAMES[dtype]


def to_torch(array: Array, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Copy or share an array of token ids or hidden states to the device, as this dtype."""
    array = np.ascontiguousarray(array)
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype == ml_dtypes.bfloat16:
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device=device, dtype=dtype)


def to_numpy(tensor: torch.Tensor) -> Array:
    """Copy a tensor off its device."""
    tensor = tensor.detach().to("cpu").contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def free_memory(device: torch.device) -> int:
    """The bytes that the device has left; on a CPU those of main memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return system_memory.available()


def release() -> None:
    """Give memory that has been freed back to the system; glibc keeps what its threads have freed."""
    gc.collect(1)
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch raised this because the device, or the machine, has no room."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch's allocator for CPUs raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
