"""The setup program on a Windows PC, which is Wine here: installer.sh builds it and sets the names below."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from routing.security import Identity, JoinToken
from swarm import SwarmClient
from swarm.tokenizer import Tokenizer
from tests.families import reference_tokens
from tests.windows.programs import Program

SETUP, PYTHON = os.environ.get("SWARM_SETUP", ""), os.environ.get("SWARM_SETUP_PYTHON", "")
WINE = "/usr/lib/wine/wine64"
PROMPT, NEW = "The capital of France is", 12
PATIENCE = 400.0  # s for a program that ends by itself
ENDING = 180.0  # s for an uninstaller, which goes on as a copy of itself

pytestmark = [
    pytest.mark.skipif(not SETUP or not PYTHON, reason="SWARM_SETUP is not set: tests/windows/installer.sh sets it"),
    pytest.mark.model,
]


class PC:
    """The machine that is installed on."""

    def __init__(self) -> None:
        self.prefix = Path(os.environ["WINEPREFIX"])
        self.disk = self.prefix / "drive_c"
        (self.user,) = (path for path in (self.disk / "users").iterdir() if path.name != "Public")

    def run(self, program: str, *arguments: str) -> tuple[int, str]:
        """Its exit code and what it printed. Not until its pipe ends: Wine's desktop, which it may start, holds it."""
        environment = {name: value for name, value in os.environ.items() if name != "SWARM_HOME"}
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        child = subprocess.Popen(
            [WINE, program, *arguments], env=environment, encoding="utf-8", errors="replace", **pipes
        )
        said: list[str] = []
        assert child.stdout is not None
        reader = threading.Thread(target=said.extend, args=(child.stdout,), daemon=True)
        reader.start()
        code = child.wait(PATIENCE)
        reader.join(1)
        return code, "".join(said)

    def files(self) -> set[str]:
        """All files and folders but Windows' own, and the copy that an uninstaller of NSIS makes of itself."""
        own = {"windows", "ProgramData"}
        tops = [top for top in self.disk.iterdir() if top.name not in own]
        found = {str(path.relative_to(self.disk)) for top in tops for path in (top, *top.rglob("*"))}
        return {path for path in found if "~nsu" not in path}

    def value(self, key: str, name: str) -> str | None:
        """Of the registry below HKEY_CURRENT_USER. By Python, because reg.exe prints in the code page of consoles."""
        ask = (
            f"import winreg; print(winreg.QueryValueEx(winreg.OpenKey(winreg.HKEY_CURRENT_USER, {key!r}), {name!r})[0])"
        )
        code, said = self.run(seen(PYTHON), "-X", "utf8", "-c", ask)
        return said.strip() if code == 0 else None

    def windows(self, path: Path) -> str:
        return "C:\\" + str(path.relative_to(self.disk)).replace("/", "\\")


@pytest.fixture
def pc() -> PC:
    return PC()


def seen(path: Path | str) -> str:
    """A path of this machine as Windows programs see it. The setup takes a slash for the start of an option."""
    return "Z:" + str(path).replace("/", "\\")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else "(no log)"


def tasks(pc: PC) -> Sequence[str]:
    return [path.name for path in (pc.disk / "windows" / "system32" / "tasks").glob("*swarm*")]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["/PYTHON=C:\\nowhere\\python.exe"], 11, "is needed and was not found"),
        ([f"/PYTHON={seen(PYTHON)}", "/JOINFIL=x"], 10, "/JOINFIL=x is not an option"),
        ([f"/PYTHON={seen(PYTHON)}", "/TORCH=cu130"], 10, "carries torch for the CPU only"),
    ],
    ids=["no Python", "wrong option", "no CUDA inside"],
)
def test_what_cannot_be_installed_says_why_and_leaves_nothing(
    pc: PC, tmp_path: Path, options: list[str], code: int, says: str
) -> None:
    before = pc.files()
    log = tmp_path / "setup.log"
    assert pc.run(SETUP, "/S", f"/LOG={seen(log)}", *options)[0] == code, text_of(log)
    assert says in text_of(log)
    assert pc.files() - before <= {str(path.relative_to(pc.disk)) for path in [pc.user / "AppData/Local/Programs"]}


def test_from_the_setup_program_to_the_first_token_and_back(
    pc: PC, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder as people have them: spaces, and letters of any language.
    folder = pc.user / "Jürgen Ω" / "layer swarm"
    folder.parent.mkdir()
    before, log = pc.files(), tmp_path / "setup.log"
    path_before = pc.value("Environment", "Path")
    token = str(JoinToken(("127.0.0.1:1",), Identity.create().public, Identity.create().secret))
    join_file = tmp_path / "join"
    join_file.write_text(token, encoding="utf-8")
    service = [f"/JOINFILE={seen(join_file)}", "/MODEL=smollm2-135m", "/SERVICE=1"]
    # NSIS takes all that follows /D= as the folder, and no quotes, which Wine puts around what has a space in it.
    where = f"/D={pc.windows(folder)}".split(" ")
    arguments = ["/S", f"/LOG={seen(log)}", f"/PYTHON={seen(PYTHON)}", *service, *where]
    assert pc.run(SETUP, *arguments)[0] == 0, text_of(log)

    # What it changed.
    key = "Software\\Microsoft\\Windows\\CurrentVersion\\Uninstall\\layerswarm"
    assert pc.value(key, "InstallLocation") == pc.windows(folder)
    assert f"{pc.windows(folder)}\\bin" in (pc.value("Environment", "Path") or "")
    links = {path.stem for path in pc.user.rglob("*.lnk")}
    assert {"Chat on this PC", "Add this PC to a swarm", "Swarm doctor", "Uninstall layerswarm"} <= links
    assert tasks(pc) == ["layerswarm server"]
    assert not (folder / "cache").exists() and not (folder / "setup" / "wheels").exists()
    data = pc.user / "AppData" / "Local" / "swarm"
    assert (data / "service" / "join").read_text(encoding="utf-8") == token
    assert token not in text_of(log)
    swarm = f"{pc.windows(folder)}\\bin\\swarm.exe"
    # SWARM_HOME is that of Linux; without it Windows' own default holds.
    installed: Any = {"python": (WINE, swarm), "flags": (), "SWARM_HOME": ""}
    code, said = pc.run(swarm, "--version")
    assert (code, said.strip().startswith("swarm, version")) == (0, True), said

    # The first tokens, from two servers, equal to those of the whole model on Linux.
    tokenizer = Tokenizer.load(smollm2)
    assert tokenizer is not None
    ids = tokenizer.encode(PROMPT)
    expected = reference_tokens(smollm2, ids, NEW)
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "client"))
    options = ("--servers", "2", "--port", "0", "--no-browser", "--dtype", "float32")
    with Program("up", seen(smollm2), *options, **installed) as up:
        token = up.line("join:")
        up.line("ready:")
        with SwarmClient(token) as client:
            (served,) = client.models()
            with client.session(served.name, max_length=64) as session:
                assert list(session.stream(ids, max_new_tokens=NEW)) == expected
        client_options = ("--max-new-tokens", str(NEW))
        with Program("client", served.name, PROMPT, *client_options, SWARM_JOIN=token, **installed) as one:
            assert one.finish() == 0, one.errors
        assert " ".join(one.output).split() == tokenizer.decode(expected).split()
        # Files that are in use cannot be deleted: it says so, and everything stays.
        uninstaller = f"{pc.windows(folder)}\\uninstall.exe"
        assert pc.run(uninstaller, "/S", *f"_?={pc.windows(folder)}".split(" "))[0] == 14
        assert (folder / "bin" / "swarm.exe").exists() and pc.value(key, "InstallLocation")
        assert up.close_input() == 0, up.errors

    # And back.
    assert pc.run(uninstaller, "/S", "/PURGE=1")[0] == 0
    limit = time.monotonic() + ENDING
    while folder.exists() and time.monotonic() < limit:
        pc.run("cmd", "/c", "rem")  # a look takes a while by itself
    assert pc.files() - before == set()
    assert pc.value(key, "InstallLocation") is None
    assert pc.value("Environment", "Path") == path_before
    assert tasks(pc) == []
