"""The options of the setup program, as they stand on its command line: `/S /TORCH=cpu /JOINFILE="C:\\a b\\join"`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pc.failure import ExitCode, SetupFailure

NAMES = ("S", "NCRC", "D", "PYTHON", "TORCH", "JOINFILE", "MODEL", "SERVICE", "FIREWALL", "PATH", "SHORTCUTS", "LOG")
_OPTION = re.compile(r'\s*/([A-Za-z]+)(?:=(?:"([^"]*)"|(\S*)))?(?=\s|$)')
_SERVICE = {"": "", "0": "", "1": "logon", "logon": "logon", "boot": "boot"}


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """The options of the setup program.

    Attributes:
        torch: `auto`, `cpu`, or a build of PyTorch's own index such as `cu130`.
        join_file: a file that holds a join token.
        model: what the service serves; empty: the default model.
        service: when the service starts: `logon`, `boot`, or empty for never.
    """

    torch: str = "auto"
    join_file: Path | None = None
    model: str = ""
    service: str = ""


def parse(line: str) -> SetupOptions:
    """The options in a command line.

    Raises:
        SetupFailure: an option is unknown or its value makes no sense.
    """
    given: dict[str, str] = {}
    rest = re.sub(r"\s*/D=.*$", "", line)  # NSIS takes all that follows as the folder
    while rest.strip():
        found = _OPTION.match(rest)
        if found is None or found[1].upper() not in NAMES:
            known = " ".join(f"/{name}" for name in NAMES)
            raise SetupFailure(ExitCode.USAGE, f"{rest.strip().split()[0]} is not an option. There are {known}.")
        given[found[1].upper()] = found[2] or found[3] or ""
        rest = rest[found.end() :]
    torch = given.get("TORCH", "").lower() or "auto"
    if not re.fullmatch(r"auto|cpu|cu\d{3}|xpu", torch):
        raise SetupFailure(ExitCode.USAGE, f"/TORCH={torch}: give auto, cpu, xpu or a CUDA build such as cu130.")
    service = given.get("SERVICE", "").lower()
    if service not in _SERVICE:
        raise SetupFailure(ExitCode.USAGE, f"/SERVICE={service}: give 0, 1 (starts when you log on) or boot.")
    join_file = Path(given["JOINFILE"]) if given.get("JOINFILE") else None
    if join_file is not None and not join_file.is_file():
        raise SetupFailure(ExitCode.USAGE, f"/JOINFILE: there is no file {join_file}.")
    if _SERVICE[service] and join_file is None:
        raise SetupFailure(ExitCode.USAGE, "/SERVICE needs /JOINFILE=FILE, a file that holds the swarm's join token.")
    return SetupOptions(torch, join_file, given.get("MODEL", ""), _SERVICE[service])
