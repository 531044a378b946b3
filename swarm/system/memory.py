"""How much memory a device has free."""

from __future__ import annotations

import subprocess

import psutil


def free_memory(device: str) -> int:
    """Bytes free on the device: on `cpu` (and `mps`, which shares it) what the system can give without swapping.

    NVIDIA cards are asked through `nvidia-smi`, which comes with the driver; not run here for want of a card.
    """
    if device == "cpu" or device == "mps":
        return psutil.virtual_memory().available
    index = device.partition(":")[2] or "0"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--id={index}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=10,
        )
        return int(answer.stdout.strip()) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return psutil.virtual_memory().available
