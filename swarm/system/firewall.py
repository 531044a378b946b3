"""Firewall rule that lets peers reach our programs through the firewall of Windows.

What the firewall sees is not `swarm-server.exe`: the console scripts, and `python.exe` of a virtual environment, only
start the `python.exe` of the Python that the environment was made with, and that listens. So the rule names that one,
and lets in whatever else it runs, too.
"""

from __future__ import annotations

import logging
import sys

from swarm.system import home

log = logging.getLogger(__name__)

RULE_NAME = "layerswarm"


def rule_command(program: str) -> str:
    """The command, for a console of an administrator; on networks that Windows calls private or domain."""
    return (
        f"netsh advfirewall firewall add rule name={RULE_NAME} dir=in action=allow protocol=TCP profile=private,domain "
        f'program="{program}"'
    )


def listening_program() -> str:
    """The executable of this process, which the firewall sees."""
    if sys.platform == "win32":
        import ctypes

        buffer = ctypes.create_unicode_buffer(32768)
        if ctypes.windll.kernel32.GetModuleFileNameW(None, buffer, len(buffer)):
            return buffer.value
    return sys.executable


def log_rule_once(host: str, windows: bool = sys.platform == "win32") -> None:
    """On Windows, log the rule when a program first listens on `host`, unless that is this machine alone."""
    if not windows or host in ("localhost", "::1") or host.startswith("127."):
        return
    told = home.folder("firewall") / "told"
    program = listening_program()
    if told.is_file() and program in told.read_text(encoding="utf-8").splitlines():
        return
    with home.disk_errors(told), told.open("a", encoding="utf-8") as file:
        file.write(program + "\n")
    log.info(
        "peers reach this machine only where the firewall lets them. Allow it when Windows asks, or as an "
        "administrator: %s  ('swarm doctor' checks it)",
        rule_command(program),
    )
