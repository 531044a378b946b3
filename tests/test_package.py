"""What is in the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from openai_api.http import static_site
from tests.test_house import ROOT, tracked

PACKAGES = {"backends", "openai_api", "patches", "routing", "swarm"}


def test_the_wheel_contains_the_page_that_was_built(tmp_path: Path) -> None:
    """And the programs, and nothing of what is only for development."""
    if find_spec("setuptools") is None:
        pytest.skip("building a wheel offline needs setuptools here")
    source = tmp_path / "source"
    for path in tracked():
        if path.parent == ROOT or path.relative_to(ROOT).parts[0] in {*PACKAGES, "tests", "benchmarks", "installer"}:
            target = source / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    page = {"index.html": "<html>", "_next/static/chunks/0a1b.js": "1", "icon.svg": "<svg/>", "licences.txt": "MIT"}
    for name, text in page.items():
        file = source / "openai_api" / "static" / "app" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path),
    ]
    done = subprocess.run([*build, str(source)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("layerswarm-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES
    assert static_site.load(installed / "openai_api" / "static").files.keys() == page.keys()
    assert "openai_api/static/index.html" in names  # for where nothing was built
    assert {f"{name}/py.typed" for name in ("openai_api", "routing", "swarm")} <= set(names)
    (entries,) = installed.glob("*.dist-info/entry_points.txt")
    assert "swarm-gateway = openai_api.cli:main" in entries.read_text()
