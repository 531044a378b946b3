"""The service: an entry of Windows' Task Scheduler, which starts the server at log-on or with Windows.

Not a service of the Service Control Manager: that would need an administrator, a wrapper program, and another account
to read the user's folders.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

from pc.failure import ExitCode, SetupFailure
from pc.layout import Layout

NAME = "layerswarm server"
_LOGON = "<LogonTrigger><UserId>{user}</UserId></LogonTrigger>"
_BOOT = "<BootTrigger><Delay>PT30S</Delay></BootTrigger>"
_XML = """<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>Serves a part of a language model to a swarm.</Description></RegistrationInfo>
  <Triggers>{trigger}</Triggers>
  <Principals><Principal id="Author">
    <UserId>{user}</UserId><LogonType>{logon}</LogonType><RunLevel>LeastPrivilege</RunLevel>
  </Principal></Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <RestartOnFailure><Interval>PT1M</Interval><Count>3</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author"><Exec>
    <Command>{program}</Command><Arguments>{arguments}</Arguments><WorkingDirectory>{folder}</WorkingDirectory>
  </Exec></Actions>
</Task>
"""


def xml(layout: Layout, user: str, home: Path, at_boot: bool) -> str:
    """The task. At boot it runs as the same user, without a password kept (S4U), before a user logs on.

    Args:
        user: `DOMAIN\\name`.
        home: SWARM_HOME of the server.
    """
    values = {
        "user": user,
        "logon": "S4U" if at_boot else "InteractiveToken",
        "program": str(layout.scripts / "pythonw.exe"),
        "arguments": f'"{layout.steps}" serve --home "{home}"',
        "folder": str(layout.setup),
    }
    escaped = {name: escape(value) for name, value in values.items()}
    return _XML.format(trigger=_BOOT if at_boot else _LOGON.format(user=escaped["user"]), **escaped)


def create(layout: Layout, user: str, home: Path, at_boot: bool) -> None:
    """Register the task. Raises: SetupFailure: Windows refuses; at boot it wants an administrator."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.xml"
        path.write_text(xml(layout, user, home, at_boot), encoding="utf-16")
        code, said = _schtasks("/Create", "/TN", NAME, "/XML", str(path), "/F")
    if code:
        rights = " Starting with Windows takes an administrator's rights." if at_boot else ""
        raise SetupFailure(ExitCode.PARTLY, f"Windows refused to make the task {NAME!r}: {said}.{rights}")


def start() -> bool:
    """Now, without waiting for the next log-on."""
    return _schtasks("/Run", "/TN", NAME)[0] == 0


def remove() -> None:
    """Delete the task. Raises: SetupFailure: Windows refuses."""
    code, said = _schtasks("/Delete", "/TN", NAME, "/F")
    if code:
        raise SetupFailure(ExitCode.PARTLY, f"Windows refused to delete the task {NAME!r}: {said}.")


def _schtasks(*arguments: str) -> tuple[int, str]:
    """Exit code and what it said. Through a file: a pipe ends only with the last process that has inherited it."""
    with tempfile.TemporaryFile() as file:
        done = subprocess.run(["schtasks", *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
        file.seek(0)
        said = file.read().decode(errors="replace").strip().rstrip(".")
    return done.returncode, said or f"exit code {done.returncode}"
