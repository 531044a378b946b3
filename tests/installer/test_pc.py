"""What the setup program does on a PC, as far as it can be tried anywhere; tests/windows/test_installer.py runs it."""

from __future__ import annotations

import json
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pc import firewall, options, packages, removal, search_path, server, task
from pc.changes import Changes
from pc.failure import ExitCode, SetupFailure, explain
from pc.layout import Layout
from pc.log import Log

from routing.security import Identity, JoinToken
from swarm.system.firewall import rule_command
from swarm.system.home import home

ENTRY = r"D:\Jürgen Ω\layerswarm\bin"
paths = st.lists(st.text(st.characters(codec="utf-8", exclude_characters=";\0"), min_size=1)).map(";".join)


@given(paths)
def test_uninstalling_gives_path_back_as_it_was(before: str) -> None:
    once = search_path.with_entry(before, ENTRY)
    assert ENTRY in once.split(";") and search_path.with_entry(once, ENTRY + "\\") == once
    assert search_path.without_entry(once, ENTRY.upper()).strip(";") == before.strip(";")


def test_options_are_read_as_they_stand_on_the_command_line(tmp_path: Path) -> None:
    token = tmp_path / "the token"
    token.write_text("swarm1:...", encoding="utf-8")
    line = f'/S /TORCH=cu130 /JOINFILE="{token}" /MODEL=qwen3-8b /service=1 /PATH=0 /D=C:\\Program Files\\a /b'
    assert options.parse(line) == options.SetupOptions("cu130", token, "qwen3-8b", "logon")
    assert options.parse("") == options.SetupOptions()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/S /JOINFIL=x", "/JOINFIL=x is not an option"),
        ("/S quiet", "quiet is not an option"),
        ("/TORCH=cuda", "/TORCH=cuda"),
        ("/SERVICE=always", "/SERVICE=always"),
        ("/SERVICE=1", "needs /JOINFILE"),
        ("/JOINFILE=C:\\nowhere\\join", "there is no file"),
    ],
)
def test_a_wrong_option_is_named(line: str, says: str) -> None:
    with pytest.raises(SetupFailure, match="(?s)" + says.replace("\\", "\\\\")) as caught:
        options.parse(line)
    assert caught.value.code == ExitCode.USAGE


def test_torch_is_for_cuda_where_there_is_a_driver_and_as_asked_otherwise() -> None:
    choice = {
        (asked, nvidia): packages.torch_backend(asked, nvidia)
        for asked in ("auto", "cpu", "cu126")
        for nvidia in (False, True)
    }
    assert choice == {
        ("auto", False): "",
        ("auto", True): "auto",
        ("cpu", False): "",
        ("cpu", True): "",
        ("cu126", False): "cu126",
        ("cu126", True): "cu126",
    }


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("error: Failed to fetch: `https://index.example/simple/torch/`\n  cause: dns error", ExitCode.NETWORK),
        ("error: failed to write\n  cause: There is not enough space on the disk. (os error 112)", ExitCode.DISK),
        ("error: failed to remove file: Access is denied. (os error 5)", ExitCode.IN_USE),
        ("  x No solution found when resolving dependencies", ExitCode.PACKAGES),
        ("", ExitCode.PACKAGES),
    ],
)
def test_a_failed_step_says_why(output: str, code: ExitCode) -> None:
    failure = explain("installing the packages", output)
    assert failure.code == code and str(failure).startswith("installing the packages: ")


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for uv.exe is a script")
def test_uv_is_passed_on_line_by_line_and_its_failure_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = _installation(tmp_path)
    layout.uv.write_text(f"#!{sys.executable}\nprint('Downloading torch')\nraise SystemExit('error: dns error')\n")
    layout.uv.chmod(0o755)
    log = Log(tmp_path / "setup.log")
    with pytest.raises(SetupFailure) as caught:
        packages.uv(layout, "installing the packages", [], log)
    assert caught.value.code == ExitCode.NETWORK
    assert "Downloading torch" in capsys.readouterr().out
    assert "error: dns error" in (tmp_path / "setup.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("at_boot", [False, True])
def test_the_task_runs_the_server_as_this_user_without_limits(tmp_path: Path, at_boot: bool) -> None:
    text = task.xml(Layout(tmp_path / "a & b"), "PC\\Jürgen", tmp_path / "home", at_boot)
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    found = {
        element.tag.removeprefix(space): element.text
        for element in ElementTree.fromstring(text.encode("utf-16")).iter()
    }
    assert ("BootTrigger" in found, "LogonTrigger" in found) == (at_boot, not at_boot)
    assert found["LogonType"] == ("S4U" if at_boot else "InteractiveToken")
    assert (found["UserId"], found["RunLevel"], found["ExecutionTimeLimit"]) == ("PC\\Jürgen", "LeastPrivilege", "PT0S")
    assert found["Arguments"] is not None and found["Arguments"].endswith(f'serve --home "{tmp_path / "home"}"')
    assert "swarm1:" not in text


def test_the_service_starts_its_server_again_until_it_ends_well(tmp_path: Path) -> None:
    token = str(JoinToken(("127.0.0.1:1",), "a" * 40, Identity.create().secret))
    server.configure(tmp_path, token, 'C:\\models\\a "b"')
    count = tmp_path / "count"
    program = (
        "import os, pathlib, sys; assert os.environ['SWARM_PARENT'] == 'stdin'; count = pathlib.Path(sys.argv[1])\n"
        "print('token', os.environ['SWARM_JOIN'] == sys.argv[2])\n"
        "count.write_text((count.read_text() if count.exists() else '') + 'x')\n"
        "sys.exit(0 if len(count.read_text()) == 4 else 1)"
    )
    pauses: list[float] = []
    code = server.serve(tmp_path, pauses.append, [sys.executable, "-c", program, str(count), token])
    assert (code, count.read_text(), pauses) == (0, "xxxx", [5.0, 10.0, 20.0])
    log = (tmp_path / "service" / "server.log").read_text(encoding="utf-8")
    assert "token True" in log and token not in log


def test_a_server_that_cannot_be_started_is_left_alone(tmp_path: Path) -> None:
    server.configure(tmp_path, "swarm1:x", "no-such-model")
    assert (
        server.serve(tmp_path, lambda _: pytest.fail("it waited"), [sys.executable, "-c", "raise SystemExit(2)"]) == 2
    )


def test_purging_deletes_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "models" / "x").mkdir(parents=True)
    (tmp_path / "config.toml").touch()
    (tmp_path / "photos").mkdir()
    removal.purge(tmp_path, Log(None))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    (tmp_path / "photos").rmdir()
    removal.purge(tmp_path, Log(None))
    assert not tmp_path.exists()


def test_everything_that_the_programs_keep_is_known_to_the_uninstaller() -> None:
    """Names below SWARM_HOME, as the programs write them."""
    import re

    root = Path(__file__).parents[2]
    sources = [path for folder in ("swarm", "openai_api", "backends") for path in (root / folder).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    named = set(re.findall(r'folder\("([\w.]+)"\)', text)) | set(re.findall(r'home\(\) / "([\w.]+)"', text))
    assert "models" in named and named <= set(removal.KEPT)


def test_the_uninstaller_finds_the_same_home_as_the_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    assert removal.swarm_home() == home()
    monkeypatch.delenv("SWARM_HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    if sys.platform != "darwin":
        assert removal.swarm_home() == home()


def test_changes_outlive_an_update(tmp_path: Path) -> None:
    layout = _installation(tmp_path)
    Changes(path=True, firewall="C:\\python.exe").save(layout)
    assert Changes.load(layout) == Changes(True, False, "C:\\python.exe")
    assert json.loads(layout.changes.read_text(encoding="utf-8"))["task"] is False
    assert layout.setup not in layout.changes.parents


def test_the_firewall_rule_is_taken_back_by_the_program_that_it_names() -> None:
    program = r"C:\a b\python.exe"
    assert f"program={program}" in firewall.add_command(program) and f"program={program}" in firewall.remove_command(
        program
    )
    assert shlex.split(rule_command(program)) == firewall.add_command(
        program
    )  # the one that the programs and the doctor name


def _installation(folder: Path) -> Layout:
    layout = Layout(folder / "layerswarm")
    layout.setup.mkdir(parents=True)
    return layout
