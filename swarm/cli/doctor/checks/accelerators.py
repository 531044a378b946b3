"""Checks of GPUs, and of torch's use of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.cli.doctor.checks.finding import Finding
from swarm.system.home import size

INDEX = "https://download.pytorch.org/whl/"
CUDA, CUDA_INDEX = (13, 0), "cu130"  # of the build of torch that is proposed
DRIVER = 580  # the first NVIDIA driver with that CUDA
REDISTRIBUTABLE = "https://aka.ms/vs/17/release/vc_redist.x64.exe"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics processor of this machine.

    Attributes:
        memory, free: bytes; None: not known.
        cuda: the newest CUDA that its driver serves; None: it is no NVIDIA card, or that is not known.
        shared: it has no memory of its own, as those in processors.
    """

    name: str
    memory: int | None = None
    free: int | None = None
    driver: str = ""
    cuda: tuple[int, int] | None = None
    nvidia: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class TorchInstall:
    """The torch that is installed, as `import torch` shows it.

    Attributes:
        cuda, hip: what it was built for; empty: not for that.
        usable: names of the GPUs that it can use.
        error: why it cannot be imported; then nothing else is known.
    """

    version: str = ""
    cuda: str = ""
    hip: str = ""
    usable: tuple[str, ...] = ()
    error: str = ""


def pip_line(python: str, version: str) -> str:
    """Installs the build of this torch for NVIDIA GPUs."""
    plain = version.partition("+")[0]
    return f'"{python}" -m pip install "torch=={plain}+{CUDA_INDEX}" --index-url {INDEX}{CUDA_INDEX}'


def torch(found: TorchInstall, gpus: Sequence[Gpu], python: str, windows: bool) -> Finding:
    """Whether torch works, and on the GPUs that are here. `python`: the interpreter that torch is installed for."""
    nvidia = [gpu for gpu in gpus if gpu.nvidia]
    if found.error:
        if windows and ("DLL load failed" in found.error or "WinError" in found.error):
            mend = f"install the Microsoft Visual C++ runtime: {REDISTRIBUTABLE}"
        else:
            mend = f'"{python}" -m pip install --force-reinstall torch'
        return Finding("torch", "broken", f"it does not work: {found.error}", mend)
    if found.usable:
        return Finding("torch", "ok", f"{found.version} computes on {', '.join(found.usable)}")
    if not nvidia:
        return Finding("torch", "ok", f"{found.version} computes on the CPU; no NVIDIA GPU is here")
    what = f"{found.version} computes on the CPU only, although there is an {nvidia[0].name}"
    driver = f"install the NVIDIA driver {DRIVER} or later from https://www.nvidia.com/drivers"
    cuda = nvidia[0].cuda
    if found.cuda:
        have = f"serves CUDA {cuda[0]}.{cuda[1]}" if cuda else "does not say which CUDA it serves"
        what += f": it is built for CUDA {found.cuda}, and the driver {have}"
        return Finding("torch", "warning", what, driver)
    line = pip_line(python, found.version)
    if cuda is not None and cuda < CUDA:
        return Finding("torch", "warning", f"{what}, whose driver is too old", f"{driver}; then: {line}")
    return Finding("torch", "warning", f"{what}: this build is without CUDA", line)


def cards(gpus: Sequence[Gpu]) -> list[Finding]:
    """What there is, a line for each."""
    if not gpus:
        return [Finding("GPU", "ok", "none was found: the CPU computes")]
    return [Finding("GPU", "ok", _described(gpu)) for gpu in gpus]


def _described(gpu: Gpu) -> str:
    memory = []
    if gpu.memory is not None:
        own = "of the main memory" if gpu.shared else "of its own"
        free = f"{size(gpu.free)} free of " if gpu.free is not None else ""
        memory.append(f"{free}{size(gpu.memory)} {own}")
    if gpu.driver:
        memory.append(f"driver {gpu.driver}")
    if gpu.cuda:
        memory.append(f"CUDA {gpu.cuda[0]}.{gpu.cuda[1]}")
    if not gpu.nvidia:
        memory.append("not used by the backend transformers")
    return f"{gpu.name} ({', '.join(memory)})" if memory else gpu.name


def model_fit(model: str, weights: int, blocks: int, free: int, where: str) -> Finding:
    """Whether a model fits: `weights` bytes in `blocks` blocks, `free` bytes on `where` (a GPU, or the main memory).

    An estimate: a tenth is taken for the KV cache and what else a server needs.
    """
    fitting = min(blocks, int(free * 0.9 / max(weights / blocks, 1)))
    have = f"{model} has {size(weights)} of weights in {blocks} blocks; {where} has {size(free)} free"
    if fitting == 0:
        mend = "close other programs, take --quantize nf4, or serve it on another machine"
        return Finding("model", "warning", f"{have}: not even one block fits", mend)
    if fitting < blocks:
        return Finding("model", "ok", f"{have}: about {fitting} blocks fit, other machines must serve the rest")
    return Finding("model", "ok", f"{have}: all of it fits")
