from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "bootstrap.py"


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_command_it_prints_how_it_is_used() -> None:
    alone = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    asked = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert (alone.returncode, asked.returncode) == (2, 0)
    assert "python bootstrap.py up" in asked.stdout and asked.stdout == alone.stderr


def test_every_python_since_3_6_can_read_it_and_is_told_which_one_is_needed(bootstrap: ModuleType) -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "__future__" not in imported
    for version in ((3, 6), (3, 10), (3, 14)):
        with pytest.raises(bootstrap.Failure, match=r"this is Python 3\.\d+; Python 3\.11 to 3\.13 is needed"):
            bootstrap.check_python(version)
    for version in ((3, 11), (3, 13)):
        bootstrap.check_python(version)


def test_a_wrong_python_is_one_line_and_no_traceback(bootstrap: ModuleType, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(bootstrap, "OLDEST", (3, 99))
    monkeypatch.setattr(bootstrap, "TOO_NEW", (4, 0))
    assert bootstrap.main(["up"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and said.err.startswith("bootstrap: this is Python")


def test_a_stamp_serves_only_what_was_installed(bootstrap: ModuleType) -> None:
    stamp = {"wanted": "x", "extra": "test", "index": "cu130"}
    assert bootstrap.is_current(stamp, "x", "", "") and bootstrap.is_current(stamp, "x", "test", "cu130")
    assert not bootstrap.is_current(stamp, "y", "", "")
    assert not bootstrap.is_current(stamp, "x", "", "cpu")
    assert not bootstrap.is_current({**stamp, "extra": ""}, "x", "test", "")
    assert not bootstrap.is_current({}, "x", "", "")


def test_a_second_run_with_nothing_changed_starts_no_installer(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.touch()
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(bootstrap, "PYTHON", python)
    monkeypatch.setattr(bootstrap, "make_venv", lambda: pytest.fail("it installed again"))
    monkeypatch.delenv("SWARM_TORCH_INDEX", raising=False)
    (tmp_path / "stamp").write_text(json.dumps({"wanted": bootstrap.wanted(), "extra": "test", "index": ""}))
    bootstrap.install("")
    bootstrap.install("test")
    (tmp_path / "stamp").write_text("[ half a file")
    with pytest.raises(pytest.fail.Exception):
        bootstrap.install("")


def test_the_torch_line_says_how_to_choose_another(bootstrap: ModuleType) -> None:
    assert "cu130" in bootstrap.torch_step("", True, "win32")
    assert "/cpu" in bootstrap.torch_step("", True, "linux") and "/cpu" in bootstrap.torch_step("", False, "linux")
    assert bootstrap.torch_step("", False, "darwin") == "installing torch"
    assert bootstrap.torch_step("https://x/cu130", True, "win32") == "installing torch from https://x/cu130"
    assert "--index-url" not in bootstrap.torch_arguments("")
    assert bootstrap.torch_arguments("https://x")[-3:] == ["--index-url", "https://x", "torch"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Collecting torch\nERROR: Could not install packages due to an OSError: [Errno 28] No space left",
            "disk is full",
        ),
        ("WARNING: Retrying ... Temporary failure in name resolution\nERROR: No matching distribution", "network"),
        ("PermissionError: [Errno 13] Permission denied: 'x'", "cannot be written to"),
        ("ERROR: No matching distribution found for torch==2.13.0", "the package index has not all that is needed"),
        ("noise\nERROR: Failed building wheel\n\nmore noise\n", "ERROR: Failed building wheel"),
        ("", "no reason was given"),
    ],
)
def test_a_failed_step_says_what_to_do_in_one_line(bootstrap: ModuleType, said: str, words: str) -> None:
    assert words in bootstrap.explain(said)
    assert "\n" not in bootstrap.explain(said)


def test_a_folder_that_is_not_ours_is_not_deleted(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = tmp_path / ".venv"
    venv.mkdir()
    (venv / "precious").touch()
    for name, path in (("VENV", venv), ("LOG", venv / "bootstrap.log"), ("PYTHON", venv / "bin" / "python")):
        monkeypatch.setattr(bootstrap, name, path)
    with pytest.raises(bootstrap.Failure, match="was not made by this program"):
        bootstrap.make_venv()
    assert (venv / "precious").exists()


def test_a_python_without_venv_names_the_package(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / ".venv" / "python")
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(bootstrap.Failure, match=r"sudo apt install python3\.\d+-venv"):
        bootstrap.make_venv()


def test_on_windows_ctrl_c_is_left_to_the_program(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Child:
        waits = iter([KeyboardInterrupt(), KeyboardInterrupt(), 7])
        pid = 0

        def __init__(self, command: list[str]) -> None:
            assert command == ["swarm.exe", "up"]

        def wait(self) -> int:
            came = next(self.waits)
            if isinstance(came, BaseException):
                raise came
            return came

    monkeypatch.setattr(bootstrap, "WINDOWS", True)
    monkeypatch.setattr(bootstrap.subprocess, "Popen", Child)
    assert bootstrap.run(["swarm.exe", "up"]) == 7


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no exec")
def test_the_program_takes_the_place_of_the_bootstrap() -> None:
    """One process, so a signal arrives once; standard output is the program's own; a closed input stays harmless."""
    child = "import os, sys; print(os.getpid(), os.read(0, 9) == b''); sys.exit(5)"
    program = (
        "import importlib.util as u, os, sys; os.close(0)\n"
        f"s = u.spec_from_file_location('bootstrap', {str(SCRIPT)!r})\n"
        "m = u.module_from_spec(s); s.loader.exec_module(m)\n"
        f"m.run([sys.executable, '-c', {child!r}])\n"
    )
    started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    out, _ = started.communicate(timeout=60)
    assert (out.split(), started.returncode) == ([str(started.pid), "True"], 5)


def test_the_environment_of_upstream_petals_is_apart_and_wants_its_own_python(
    bootstrap: ModuleType, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 12, 1))
    with pytest.raises(bootstrap.Failure, match=r"3\.12; what upstream Petals goes with is made for 3\.11"):
        bootstrap.use_petals()
    assert bootstrap.VENV == ROOT / ".venv"
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 11, 9))
    bootstrap.use_petals()
    assert bootstrap.VENV == ROOT / ".venv-petals"
    assert bootstrap.PYTHON.is_relative_to(bootstrap.VENV) and bootstrap.STAMP.is_relative_to(bootstrap.VENV)


def test_upstream_petals_gets_the_versions_that_are_tested_where_it_can() -> None:
    def pins(text: str) -> dict[str, str]:
        lines = [line for line in text.splitlines() if "==" in line]
        return {
            name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines)
        }

    wanted = (ROOT / "backends" / "upstream" / "requirements.txt").read_text(encoding="utf-8")
    own, _, shared = wanted.partition("# As in constraints.txt.")
    tested = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert pins(shared).items() <= tested.items()
    assert {"petals", "transformers"} <= pins(own).keys()


@pytest.fixture
def page(bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources of a page, with an `npm` that writes `out/`, or fails where a file `broken` lies."""
    sources = tmp_path / "chatbot-ui"
    (sources / "app").mkdir(parents=True)
    (sources / "node_modules").mkdir()
    (sources / "package-lock.json").write_text("{}")
    (sources / "app" / "page.tsx").write_text("first")
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\necho "$1" >> calls\n[ ! -e broken ] && mkdir -p out && cp app/page.tsx out/index.html\n')
    npm.chmod(0o755)
    (tmp_path / "venv").mkdir()
    for name, path in (("PAGE", sources), ("BUILT", tmp_path / "built"), ("VENV", tmp_path / "venv")):
        monkeypatch.setattr(bootstrap, name, path)
    monkeypatch.setattr(bootstrap, "find_npm", lambda: str(npm))
    return sources


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npm is a shell script")
def test_the_page_is_built_once_and_again_when_its_sources_change(
    bootstrap: ModuleType, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.build_page(again=False)
    bootstrap.build_page(again=True)
    assert (page / "calls").read_text().split() == ["ci", "run"]
    assert (page.parent / "built" / "index.html").read_text() == "first"
    assert "built the chat page" in capsys.readouterr().err
    (page / "app" / "page.tsx").write_text("second")
    bootstrap.build_page(again=False)
    assert (page / "calls").read_text().split() == ["ci", "run", "run"]
    assert (page.parent / "built" / "index.html").read_text() == "second"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npm is a shell script")
def test_a_page_that_cannot_be_built_is_said_and_not_tried_at_every_start(
    bootstrap: ModuleType, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (page / "broken").touch()
    bootstrap.build_page(again=False)
    assert "failed, so the gateway serves its simple chat page (log: " in capsys.readouterr().err
    bootstrap.build_page(again=False)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "'bootstrap.py install' tries again" in said
    assert (page / "calls").read_text().split() == ["ci"]
    (page / "broken").unlink()
    bootstrap.build_page(again=True)
    assert (page.parent / "built" / "index.html").exists()


def test_without_node_one_line_says_so_and_without_sources_none(
    bootstrap: ModuleType, page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "find_npm", lambda: None)
    bootstrap.build_page(again=False)
    assert capsys.readouterr().err == (
        "no Node.js 20 or newer is here (https://nodejs.org), so the gateway serves its simple chat page\n"
    )
    (page / "package-lock.json").unlink()
    bootstrap.build_page(again=False)
    assert capsys.readouterr().err == ""
