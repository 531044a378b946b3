"""Firewall rule that lets peers reach this machine, on networks that Windows calls private or domain."""

from __future__ import annotations

import subprocess
import sys

NAME = "layerswarm"


def add_command(program: str) -> list[str]:
    """The command that adds the rule for one program.

    Args:
        program: the executable that listens, which is that of the Python that the virtual environment was made with.
    """
    rule = ["dir=in", "action=allow", "protocol=TCP", "profile=private,domain", f"program={program}"]
    return ["netsh", "advfirewall", "firewall", "add", "rule", f"name={NAME}", *rule]


def remove_command(program: str) -> list[str]:
    """The command that removes the rule of one program."""
    return ["netsh", "advfirewall", "firewall", "delete", "rule", f"name={NAME}", f"program={program}"]


def run_as_administrator(command: list[str], may_ask: bool) -> bool:
    """Run it with the rights that it needs; Windows asks the user first. Whether it was done.

    Args:
        may_ask: False where no user is there to answer.
    """
    if is_administrator():
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    if not may_ask:
        return False
    # PowerShell's Start-Process waits for a program with other rights and tells its exit code.
    quoted = ",".join("'" + part.replace("'", "''") + "'" for part in _quoted(command[1:]))
    script = f"exit (Start-Process -FilePath {command[0]} -ArgumentList {quoted} -Verb RunAs -Wait -PassThru).ExitCode"
    shell = ["powershell", "-NoProfile", "-NonInteractive", "-Command", script]
    try:
        return subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def is_administrator() -> bool:
    """Whether this process has an administrator's rights."""
    if sys.platform == "win32":
        import ctypes

        return bool(ctypes.windll.shell32.IsUserAnAdmin())
    return False


def _quoted(arguments: list[str]) -> list[str]:
    """Start-Process joins them with spaces and quotes nothing."""
    return [argument if " " not in argument else _in_quotes(argument) for argument in arguments]


def _in_quotes(argument: str) -> str:
    name, _, value = argument.partition("=")
    return f'{name}="{value}"'
