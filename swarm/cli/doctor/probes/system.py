"""Probes of the machine: tools, ports, key files, models."""

from __future__ import annotations

import errno
import json
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from swarm.cli.doctor.checks.accelerators import TorchInstall
from swarm.cli.doctor.checks.ports import PortState
from swarm.models.catalogue import CATALOGUE
from swarm.system import home

TOOL_TIMEOUT = 20.0  # s for a tool of the system
IMPORT_TIMEOUT = 300.0  # s for torch, which a virus scanner may read whole when it is imported first

_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
usable = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
    usable.append("the Apple GPU")
free = torch.cuda.mem_get_info(0)[0] if usable and cuda else None
print(json.dumps([torch.__version__, torch.version.cuda or "", torch.version.hip or "", usable, free]))
"""


def tool_output(*command: str) -> str:
    """What a tool of the system prints; empty where it is not there or fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=TOOL_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def torch_install() -> tuple[TorchInstall, int | None]:
    """What this Python's torch can do, and bytes free on its first GPU. Asked in a process of its own, because a
    broken one can end the process that imports it.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=IMPORT_TIMEOUT,
        )
        version, cuda, hip, usable, free = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return TorchInstall(error=f"it was not imported within {IMPORT_TIMEOUT:.0f} s"), None
    except (OSError, ValueError, IndexError):
        last = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        return TorchInstall(error=last[0]), None
    return TorchInstall(version, cuda, hip, tuple(usable)), free


def free_disk(path: Path) -> int:
    """Bytes free on the disk that holds `path`, which need not exist yet."""
    return shutil.disk_usage(next(parent for parent in (path, *path.parents) if parent.exists())).free


def port_state(number: int, host: str = "0.0.0.0") -> PortState:
    """Whether a program could listen there, by trying."""
    with socket.socket() as trial:
        if sys.platform == "win32":
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, number))  # to listen as well would make Windows' firewall ask
        except OSError as error:
            return "in use" if error.errno == errno.EADDRINUSE else "forbidden"
    return "free"


def port_owner(number: int) -> str:
    """What listens on a port, for people: the swarm's command, or a program's name; empty: not known."""
    try:
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr[1:] == (number,) and each.pid:
                process = psutil.Process(each.pid)
                module = [word for word in process.cmdline() if Path(word).stem.startswith(("swarm", "openai_api"))]
                return f"{Path(module[0]).stem if module else process.name()} (process {each.pid})"
    except (psutil.Error, OSError):
        pass  # macOS and some Windows accounts may not ask
    return ""


def key_files() -> list[Path]:
    """Every file under `SWARM_HOME` that holds a secret."""
    folders = (("identities", "*.key"), ("directory", "*.key"), ("up", "*.key"), ("up", "join"))
    return sorted(path for name, pattern in folders for path in (home.home() / name).glob(pattern))


def readable_by_others(path: Path) -> bool:
    """On POSIX, by the mode of the file and of the folders between it and `SWARM_HOME`."""
    inside = [path, *(parent for parent in path.parents if parent.is_relative_to(home.home()))]
    passable = all(each.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) for each in inside[1:])
    return passable and bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def model_size(name: str) -> tuple[int, int] | None:
    """Bytes of weights and number of blocks of a model that is on this machine; None: it is not.

    A model is found as `swarm-server` finds it, but never fetched.
    """
    entry = CATALOGUE.get(name.lower())
    repo = entry.repo if entry else name
    folders: Sequence[Path] = (
        Path(name).expanduser(),
        *(home.home() / "models" / each.replace("/", "--") for each in (repo, name.lower() if entry else name)),
    )
    for folder in folders:
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        except (OSError, ValueError):
            continue
        nested = config.get("text_config", {})
        keys = ("num_hidden_layers", "n_layer", "num_layers")
        blocks = next((each[key] for each in (config, nested) for key in keys if key in each), 0)
        if weights and blocks:
            return weights, blocks
    return None
