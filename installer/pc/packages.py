"""Our package and all that it needs, put into the virtual environment by uv."""

from __future__ import annotations

import ctypes
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pc.failure import ExitCode, SetupFailure, explain
from pc.layout import Layout
from pc.log import Log

NEEDED = 2_000_000_000  # bytes: torch for the CPU, everything else, and the cache while it is being installed
NEEDED_CUDA = 8_000_000_000
RUNTIME = "msvc-runtime==14.44.35112"
REDISTRIBUTABLE = "https://aka.ms/vs/17/release/vc_redist.x64.exe"
PATIENCE = 5.0  # s without a word from uv, until the setup says how far it is
CHECK = (
    "import torch, transformers, zmq, swarm\n"
    "print('Python', __import__('platform').python_version(), '- torch', torch.__version__,"
    " '- CUDA' if torch.cuda.is_available() else '- no CUDA')"
)


def install(layout: Layout, version: str, offline: bool, torch: str, log: Log) -> None:
    """Make the virtual environment and install our package into it.

    Raises:
        SetupFailure: no room, no network, a package is missing, the C++ runtime is missing, it does not run.
    """
    nvidia = has_nvidia_driver()
    backend = torch_backend(torch, nvidia)
    if offline and backend not in ("", "auto"):
        raise SetupFailure(ExitCode.USAGE, f"/TORCH={torch}: the offline variant carries torch for the CPU only.")
    needed = NEEDED_CUDA if backend and not offline else NEEDED
    free = shutil.disk_usage(layout.root).free
    if free < needed:
        raise SetupFailure(
            ExitCode.DISK,
            f"{needed / 1e9:.0f} GB are needed on the disk of {layout.root}, and {free / 1e9:.1f} GB are free.",
        )
    runtime = has_cpp_runtime()
    if offline and not runtime:
        raise SetupFailure(
            ExitCode.DOES_NOT_RUN,
            f"Windows lacks the Microsoft Visual C++ runtime, which torch needs. Install it from {REDISTRIBUTABLE} "
            "(it may not be part of this setup), then start the setup again.",
        )
    if offline:
        log("torch for the CPU, as this variant carries it" + (" (there is an NVIDIA driver)" if nvidia else ""))
        asked = ["--offline", "--no-index", "--find-links", str(layout.wheels), f"layerswarm=={version}", "pip"]
    else:
        log("an NVIDIA driver is here: torch with CUDA, about 3 GB" if backend else "torch for the CPU")
        (wheel,) = layout.wheels.glob("layerswarm-*.whl")
        asked = ["--constraint", str(layout.constraints), *(["--torch-backend", backend] if backend else [])]
        asked += [f"layerswarm[quantize] @ {wheel.as_uri()}", "pip"]
    uv(layout, "installing the packages", ["pip", "install", "--python", str(layout.python), *asked], log)
    if not runtime:
        add_cpp_runtime(layout, log)
    check(layout, log)


def torch_backend(asked: str, nvidia: bool) -> str:
    """uv's `--torch-backend`; empty for the package index, whose builds for Windows are those for the CPU."""
    if asked == "auto":
        return "auto" if nvidia else ""
    return "" if asked == "cpu" else asked


def has_nvidia_driver() -> bool:
    """nvcuda.dll is put there by NVIDIA's driver and by nothing else."""
    return (Path(os.environ.get("SYSTEMROOT", "/")) / "System32" / "nvcuda.dll").exists()


def has_cpp_runtime() -> bool:
    """torch's own libraries need msvcp140.dll, which neither Windows nor Python brings."""
    if sys.platform == "win32":
        try:
            ctypes.WinDLL("msvcp140.dll")
        except OSError:
            return False
    return True


def add_cpp_runtime(layout: Layout, log: Log) -> None:
    """From the package index straight to this machine, into the folder where torch looks first."""
    uv(layout, "installing the C++ runtime", ["pip", "install", "--python", str(layout.python), RUNTIME], log)
    target = layout.venv / "Lib" / "site-packages" / "torch" / "lib"
    for pattern in ("msvcp140*.dll", "vcruntime140*.dll"):
        for dll in layout.scripts.glob(pattern):
            shutil.copy2(dll, target)


def check(layout: Layout, log: Log) -> None:
    """Run what was installed once. Raises: SetupFailure: what was installed does not run."""
    log("trying what was installed")
    done = subprocess.run(
        [str(layout.python), "-X", "utf8", "-c", CHECK],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment(layout),
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        log.keep(done.stdout)
        raise SetupFailure(
            ExitCode.DOES_NOT_RUN, f"what was installed does not run: {lines[-1] if lines else 'it says nothing'}"
        )
    log(done.stdout.strip().splitlines()[-1])


def environment(layout: Layout) -> dict[str, str]:
    """uv's settings come from us and from the environment (a mirror, a proxy), not from files of other projects."""
    ours = {"UV_NO_CONFIG": "1", "UV_CACHE_DIR": str(layout.cache), "UV_NO_PROGRESS": "1", "UV_SYSTEM_CERTS": "1"}
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | ours


def uv(layout: Layout, step: str, arguments: list[str], log: Log) -> None:
    """Run uv, passing on what it says.

    Raises:
        SetupFailure: it failed; the cause as far as it can be told.
    """
    log(step)
    before = shutil.disk_usage(layout.root).free
    child = subprocess.Popen(
        [str(layout.uv), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment(layout),
    )
    said: list[str] = []
    for line in lines_of(child):
        if line is None:
            # Not by a look into uv's cache: Windows does not let a folder be renamed that another program is reading.
            log(f"... {(before - shutil.disk_usage(layout.root).free) / 1e6:.0f} MB so far")
        elif line:
            said.append(line)
            log(line)
    if child.wait():
        raise explain(step, "\n".join(said))


def lines_of(child: subprocess.Popen[str]) -> Iterator[str | None]:
    """The lines that it prints, until it ends, and None each time it has said nothing for a while."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line.rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=PATIENCE)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        yield line


def remove_leftovers(layout: Layout) -> None:
    """What is of no use once it is installed. A virus scanner may still be reading: then it stays."""
    for folder in (layout.wheels, layout.cache):
        for _ in range(20):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.25)


def copy_programs(layout: Layout) -> None:
    """Each starts the Python of `venv`, wherever it lies itself."""
    layout.bin.mkdir(exist_ok=True)
    for program in layout.scripts.glob("swarm*.exe"):
        shutil.copy2(program, layout.bin)
