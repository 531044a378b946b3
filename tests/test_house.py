"""Rules of the house that no other tool holds."""

from __future__ import annotations

import configparser
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CODE = {".py", ".ts", ".tsx"}
GENERATED = {"package-lock.json"}


def tracked() -> list[Path]:
    """Files of the project that git knows or would take, without what is generated."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        [git, "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in files if path.is_file() and path.name not in GENERATED]


def setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def listed(value: str) -> list[str]:
    return [line for line in value.splitlines() if line]


def test_packages_import_only_what_the_design_lets_them() -> None:
    lint = Path(sys.executable).with_name("lint-imports" + (".exe" if sys.platform == "win32" else ""))
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("group", ["console_scripts", "swarm.commands", "swarm.backends"])
def test_every_entry_point_leads_to_code(group: str) -> None:
    for line in listed(setup()["options.entry_points"][group]):
        module, _, function = line.partition("=")[2].strip().partition(":")
        found = importlib.import_module(module)
        assert callable(getattr(found, function)) if function else callable(found.load)


def test_every_requirement_is_pinned() -> None:
    config = setup()
    pinned = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pinned[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    wanted = listed(config["options"]["install_requires"])
    wanted += [line for extra in config["options.extras_require"].values() for line in listed(extra)]
    for line in wanted:
        requirement = Requirement(line)
        if requirement.name != "layerswarm":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), line


def test_every_row_of_the_windows_page_names_code_and_a_test_that_are_there() -> None:
    page = (ROOT / "WINDOWS_PATCHES.md").read_text(encoding="utf-8")
    for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page):
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
    own = page.partition("## Our own deviations")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in own.splitlines() if "|" in line][2:]
    assert len(rows) > 20
    for where, what, why, test in rows:
        files = [ROOT / name for name in re.findall(r"`([\w/]+\.py)`", where)]
        code = "".join(file.read_text(encoding="utf-8") for file in files)
        for symbol in re.findall(r"`(\w+)`", where):
            assert re.search(rf"^ *(?:def|class) {symbol}\b", code, re.MULTILINE), where
        assert files and what and why and "::test_" in test, where


def test_no_file_is_longer_than_one_idea() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked()
        if path.suffix in CODE and (lines := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long


def test_no_path_of_one_machine_is_in_the_tree() -> None:
    foreign = re.compile(r"/(?:root|work|farm)/|/tmp/[a-z]|/home/[a-z]+/|[A-Z]:\\Users\\[A-Za-z]")
    found = []
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or a model
        found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in foreign.finditer(text)]
    assert not found
