"""Removal, as far as the uninstaller leaves it to Python: task, firewall rule, PATH, and the user's own data on
request.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from pc import firewall, search_path, task
from pc.changes import Changes
from pc.failure import SetupFailure
from pc.layout import Layout
from pc.log import Log

# All that the programs keep below SWARM_HOME. Nothing else is deleted: the user may have named any folder.
KEPT = (
    *("models", "chats", "accounts", "identities", "spans", "tokenizers"),
    *("up", "directory", "service", "firewall", "config.toml"),
)


def undo(layout: Layout, silent: bool, log: Log) -> list[str]:
    """Take back what was changed. What needs rights that this user has not is said in the list."""
    changes = Changes.load(layout)
    problems = []
    if changes.task:
        try:
            task.remove()
            log(f"the task {task.NAME!r} is gone")
        except SetupFailure as failure:
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


def purge(home: Path, log: Log) -> None:
    """Delete models, chats, accounts, identities and settings below SWARM_HOME, and it too if nothing else is in it."""
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
    """As `swarm.system.home` finds it, also where that package cannot be imported any more."""
    chosen = os.environ.get("SWARM_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("LOCALAPPDATA", "") if sys.platform == "win32" else ""
    return Path(base or Path.home() / ".local" / "share") / "swarm"
