"""Probe of NVIDIA GPUs, asked through NVML, which comes with the driver."""

from __future__ import annotations

from swarm.cli.doctor.checks.accelerators import Gpu


def nvidia_gpus() -> list[Gpu]:
    """All of them; none where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())  # 12080 is 12.8
        cuda = (number // 1000, number % 1000 // 10)
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = str(pynvml.nvmlDeviceGetName(handle))
            found.append(Gpu(name, int(memory.total), int(memory.free), driver, cuda, nvidia=True))
        return found
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
