"""What the uninstaller leaves to Python: processes, task, firewall rule, PATH, and the user's own data on request."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from pc import firewall, search_path, task
from pc.changes import Changes
from pc.failure import Code, Failure
from pc.layout import Layout
from pc.log import Log

# All that the programs keep below SWARM_HOME. Nothing else is deleted: the user may have named any folder.
KEPT = ("models", "identities", "tokenizers", "up", "directory", "service", "firewall", "config.toml")

ENDING = 20.0  # s for the service to let go of its sessions


def undo(layout: Layout, silent: bool, log: Log) -> list[str]:
    """Take back what was changed. What needs rights that this user has not is said in the list.

    Raises:
        Failure: programs of the swarm are running.
    """
    changes = Changes.load(layout)
    require_idle(layout, changes)
    problems = []
    if changes.task:
        try:
            task.remove()
            log(f"the task {task.NAME!r} is gone")
        except Failure as failure:
            problems.append(str(failure))
    if changes.firewall:
        command = firewall.remove_command(changes.firewall)
        if firewall.run_as_administrator(command, may_ask=not silent):
            log("the firewall rule is gone")
        else:
            problems.append(f"The firewall rule stays. An administrator removes it with: {' '.join(command)}")
    if changes.path:
        search_path.remove(layout.bin)
        log(f"{layout.bin} is no longer on your PATH")
    return problems


def require_idle(layout: Layout, changes: Changes) -> None:
    """End the service, which goes on after an update.

    Raises:
        Failure: other programs of the swarm are running: files in use cannot be deleted.
    """
    if changes.task:
        task.end()
    limit = time.monotonic() + ENDING
    while running := programs_of(layout):
        if not changes.task or time.monotonic() > limit:
            raise Failure(Code.IN_USE, f"programs of the swarm are running ({', '.join(running)}). Close them first.")
        time.sleep(0.5)


def programs_of(layout: Layout) -> list[str]:
    """Names and process numbers of the programs that run from the folder, but this one and those that started it."""
    import psutil

    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            program = Path(process.exe())
        except (psutil.Error, OSError):
            continue  # somebody else's, or gone
        if process.pid not in mine and program.is_relative_to(layout.root) and program.name != "uninstall.exe":
            found.append(f"{program.name} {process.pid}")
    return found


def purge(home: Path, log: Log) -> None:
    """Delete models, identities and settings below SWARM_HOME, and that folder if nothing else is in it."""
    for name in KEPT:
        path = home / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if path.exists():
            log(f"{path} could not be deleted")
    if home.is_dir() and not any(home.iterdir()):
        home.rmdir()


def swarm_home() -> Path:
    """As `swarm.home` finds it, also where that package cannot be imported any more."""
    chosen = os.environ.get("SWARM_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("LOCALAPPDATA", "") if sys.platform == "win32" else ""
    return Path(base or Path.home() / ".local" / "share") / "swarm"
