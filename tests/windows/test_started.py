"""From `bootstrap.py` to a swarm and its end, as somebody starts it. Nothing is installed: what bootstrap.py would have
made stands in a folder beside a copy of it, with the console script that pip makes.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import stat
import sys
import urllib.request
import zipfile
from pathlib import Path

import psutil
import pytest

from tests.families import make_model
from tests.windows.programs import ROOT, Program

MAIN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from swarm.cli.main import main; main()"


def console_script(folder: Path) -> None:
    """`swarm`, as pip makes it: on Windows distlib's launcher, the interpreter's path, and an archive with the code."""
    if sys.platform != "win32":
        (folder / "swarm").write_text(f"#!{sys.executable}\n{MAIN}\n")
        (folder / "swarm").chmod(0o755 | stat.S_IXUSR)
        return
    import ensurepip

    (wheel,) = (Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl")
    with zipfile.ZipFile(wheel) as pip:
        launcher = pip.read("pip/_vendor/distlib/t64.exe")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as code:
        code.writestr("__main__.py", MAIN)
    (folder / "swarm.exe").write_bytes(launcher + f'#!"{sys.executable}"\r\n'.encode() + archive.getvalue())


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder as bootstrap.py leaves it, with a blank and letters of other countries in its name."""
    folder = tmp_path / "my swärm Ω"
    scripts = folder / ".venv" / ("Scripts" if sys.platform == "win32" else "bin")
    scripts.mkdir(parents=True)
    pins = ("setup.cfg", "pyproject.toml", "constraints.txt", "backends/upstream/requirements.txt")
    for name in ("bootstrap.py", "swarm/system/jobs.py", "swarm/system/console.py", *pins):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (scripts / ("python.exe" if sys.platform == "win32" else "python")).touch()
    console_script(scripts)
    spec = importlib.util.spec_from_file_location("bootstrap", folder / "bootstrap.py")
    assert spec is not None and spec.loader is not None
    bootstrap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bootstrap)
    bootstrap.STAMP.write_text(json.dumps({"wanted": bootstrap.wanted(), "extra": "", "index": ""}))
    return folder


def start(clone: Path, *arguments: str) -> Program:
    return Program(*arguments, flags=(str(clone / "bootstrap.py"),), SWARM_HOME=str(clone / "home"))


def test_the_bootstrap_starts_the_program_and_hands_its_exit_code_on(clone: Path) -> None:
    with start(clone, "up", "--servers", "0") as program:
        assert program.finish() == 2
    assert "--servers" in program.errors[-1]
    with start(clone, "up", "--help") as program:
        assert program.finish() == 0
    assert any("Start directory, servers and gateway" in line for line in program.output)


def test_killing_what_the_user_started_leaves_nothing_running(clone: Path) -> None:
    model = make_model("llama", clone / "models" / "tiny")
    options = ("--servers", "1", "--port", "0", "--no-browser", "--dtype", "float32", "--device", "cpu")
    with start(clone, "up", str(model), *options) as program:
        url = program.line("ready:")
        with urllib.request.urlopen(f"{url}/v1/models", timeout=60) as answer:
            assert json.load(answer)["data"][0]["id"] == "tiny"
        started = psutil.Process(program.process.pid)
        family = [started, *started.children(recursive=True)]
        assert len(family) >= 4  # swarm up, directory, gateway, server; on Windows also the two launchers
        program.process.kill()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
