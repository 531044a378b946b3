"""Checks of the machine itself: Python, memory, disk, paths, sleep, console."""

from __future__ import annotations

import re
from typing import NamedTuple

from swarm.cli.doctor.checks.finding import Finding
from swarm.system.home import size

OLDEST, TOO_NEW = (3, 11), (3, 14)
LEAST_DISK = 5_000_000_000  # bytes that a small model and its conversion need
LEAST_MEMORY = 2_000_000_000  # bytes below which hardly a block fits beside the programs
MAX_PATH = 259  # characters of a path where Windows has its old limit
DOWNLOAD_PATH = 185  # characters that a download adds to SWARM_HOME: the repository's name, the hub's temporary file


def python(version: tuple[int, int], bits: int) -> Finding:
    """Whether this Python is one that the programs run with."""
    have = f"Python {version[0]}.{version[1]}, {bits} bit"
    start = "install 64-bit Python 3.12 from https://www.python.org/downloads/ and run bootstrap.py with it"
    if bits != 64:
        return Finding("Python", "broken", f"{have}: torch needs 64 bit", start)
    if not OLDEST <= version < TOO_NEW:
        return Finding("Python", "broken", f"{have}: 3.11 to 3.{TOO_NEW[1] - 1} is needed", start)
    return Finding("Python", "ok", have)


def memory(free: int, total: int) -> Finding:
    """Whether enough main memory is free, in bytes."""
    have = f"{size(free)} free of {size(total)}"
    if free < LEAST_MEMORY:
        return Finding("memory", "warning", f"only {have}", "close other programs before a server starts here")
    return Finding("memory", "ok", have)


def disk(home: str, free: int, kept: int = 0) -> Finding:
    """`kept`: bytes of spans that were cut or compiled there."""
    have = f"{size(free)} free for {home}" + (f", where spans for servers take {size(kept)}" if kept else "")
    if free < LEAST_DISK:
        mend = "free some space, or set SWARM_HOME to a folder on another disk"
        if kept:
            mend = f"swarm cache clear (deletes the spans that no server uses), or {mend}"
        return Finding("disk", "warning", f"only {have}; a small model needs {size(LEAST_DISK)}", mend)
    return Finding("disk", "ok", have)


def long_paths(enabled: bool | None, home: str) -> Finding:
    """Whether paths of more than 260 characters work. `enabled`: `LongPathsEnabled`; None: this is not Windows."""
    if enabled is None:
        return Finding("long paths", "skipped", "only Windows limits them")
    if enabled:
        return Finding("long paths", "ok", "enabled")
    left = MAX_PATH - len(home) - DOWNLOAD_PATH
    mend = (
        "in a PowerShell of an administrator: New-ItemProperty -Force -PropertyType DWORD -Value 1 -Name "
        "LongPathsEnabled -Path HKLM:\\SYSTEM\\CurrentControlSet\\Control\\FileSystem"
    )
    if left < 0:
        what = f"paths end at {MAX_PATH} characters, and SWARM_HOME ({len(home)}) leaves too few to fetch models"
        return Finding("long paths", "warning", what, f"{mend} (or set SWARM_HOME to a short path)")
    return Finding("long paths", "ok", f"not enabled; SWARM_HOME is short enough ({len(home)} characters)")


class SleepTimeouts(NamedTuple):
    """Sleep timeouts: seconds until the machine sleeps by itself, on mains and on battery; 0: never."""

    mains: int
    battery: int


def parse_sleep_timeouts(powercfg: str) -> SleepTimeouts | None:
    """From `powercfg /query SCHEME_CURRENT SUB_SLEEP STANDBYIDLE`; None: it says nothing of the kind.

    Its words are those of the user's language; the last two hexadecimal numbers are the settings in use.
    """
    numbers = re.findall(r"\b0x([0-9a-fA-F]{8})\b", powercfg)
    return SleepTimeouts(int(numbers[-2], 16), int(numbers[-1], 16)) if len(numbers) >= 2 else None


def sleep(idle: SleepTimeouts | None) -> Finding:
    """Whether the machine falls asleep by itself while it serves."""
    if idle is None:
        return Finding("sleep", "skipped", "the power settings cannot be read here; a server must not sleep")
    if idle.mains == 0:
        return Finding("sleep", "ok", "this machine does not sleep by itself on mains")
    return Finding(
        "sleep",
        "warning",
        f"this machine sleeps after {idle.mains // 60} minutes without a user, also while it serves others",
        "powercfg /change standby-timeout-ac 0",
    )


def console(encoding: str, terminal: bool) -> Finding:
    """Whether all text can be shown. `terminal`: standard output is one, not a file or a pipe."""
    where = "the terminal" if terminal else "standard output"
    try:
        "Zoë 水 █".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return Finding(
            "console",
            "warning",
            f"{where} takes {encoding}: other characters are shown as '?'",
            "set PYTHONIOENCODING=utf-8 (and in an old console: chcp 65001)",
        )
    return Finding("console", "ok", f"{where} takes every character ({encoding})")
