"""Parts of the setup program: our own wheel, uv.exe, and for the offline variant the wheels for Windows."""

from __future__ import annotations

import configparser
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV_VERSION = "0.13.9"
UV_SHA256 = "6a44b2ed8111d2f60d2b92627c5dccda3f7ed7570b18ce115e569cd68c28246b"  # of its wheel for win_amd64
PACKAGES = ("swarm", "routing", "backends", "patches", "openai_api")
METADATA = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "THIRD_PARTY_NOTICES.md")
# pip that runs here and resolves for Windows.
WINDOWS_PIP = ROOT / "tests" / "windows" / "wine" / "windows_pip.py"


class BuildError(Exception):
    """A failed build; the text says what is wrong and what to do."""


def run(command: list[str], what: str) -> None:
    """Run a command of the build; `what` names it in the error.

    Raises:
        BuildError: it failed; the last line that it printed.
    """
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise BuildError(f"{what} failed: {said[-1] if said else f'exit code {done.returncode}'}")


def version() -> str:
    """Ours, from setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup["metadata"]["version"]


def our_wheel(target: Path) -> Path:
    """Build it from a copy, which leaves the tree as it is.

    Raises:
        BuildError: pip or setuptools failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, Path(folder) / package, ignore=leave)
        for name in METADATA:
            shutil.copy2(ROOT / name, folder)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), folder]
        run(command, "building the wheel of layerswarm")
    (wheel,) = target.glob("layerswarm-*.whl")
    return wheel


def uv(target: Path) -> list[Path]:
    """uv.exe and its licences, out of uv's wheel.

    Raises:
        BuildError: it cannot be fetched, or is not the file that was expected.
    """
    with tempfile.TemporaryDirectory() as folder:
        only = ["--no-deps", "--only-binary", ":all:", "--platform", "win_amd64", f"uv=={UV_VERSION}"]
        run([sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, *only], f"fetching uv {UV_VERSION}")
        (wheel,) = Path(folder).glob("uv-*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != UV_SHA256:
            raise BuildError(f"{wheel.name} is not the file that was expected (sha256 {found}, expected {UV_SHA256})")
        made = []
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                base = name.rpartition("/")[2]
                if base == "uv.exe" or "/licenses/" in name:
                    path = target / (base if base == "uv.exe" else f"uv-{base}.txt")
                    path.write_bytes(archive.read(name))
                    made.append(path)
    return made


def wheelhouse(target: Path, ours: Path, python: str) -> list[Path]:
    """All wheels for 64-bit Windows that ours needs, in the versions of constraints.txt, and pip, for fetching models.

    Args:
        python: such as `3.12`; compiled wheels fit one minor version.

    Raises:
        BuildError: the package index lacks one, or cannot be reached.
    """
    wanted = ["--constraint", str(ROOT / "constraints.txt"), "--dest", str(target), str(ours), "pip"]
    run([sys.executable, str(WINDOWS_PIP), "download", "--python-version", python, *wanted], "fetching the wheels")
    return sorted(target.glob("*.whl"))
