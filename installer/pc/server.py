"""The service's process: `swarm server`, started again when it fails, its words in a file."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path

FIRST_DELAY, LONGEST_DELAY = 5.0, 300.0  # s until the next start
STEADY = 600.0  # s; who has run so long begins with the short delay again
USAGE = 2


def folder(home: Path) -> Path:
    """The folder of the service's settings and logs."""
    return home / "service"


def configure(home: Path, token: str, model: str) -> None:
    """Keep the join token (readable by its owner only) and the model for `serve`."""
    where = folder(home)
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(where / "join", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(token)
    quoted = model.replace("\\", "\\\\").replace('"', '\\"')
    (where / "service.toml").write_text(f'model = "{quoted}"\n', encoding="utf-8")


def command(model: str) -> list[str]:
    """`python -m swarm server`; python.exe also where this is pythonw.exe, which has no output to read."""
    python = Path(sys.executable)
    return [str(python.with_name(python.name.replace("pythonw", "python"))), "-m", "swarm", "server", model]


def serve(home: Path, pause: Callable[[float], None] = time.sleep, python: list[str] | None = None) -> int:
    """Run the server until it ends well or cannot be started at all; its exit code.

    Args:
        pause: waits so many seconds.
        python: the command in place of `swarm server`.
    """
    log = _log(folder(home) / "server.log")
    model = str(tomllib.loads((folder(home) / "service.toml").read_text(encoding="utf-8"))["model"])
    delay = FIRST_DELAY
    while True:
        started = time.monotonic()
        code = _run(python or command(model), home, log)
        if code in (0, USAGE):
            log.info("the server has ended (exit code %d)", code)
            return code
        delay = FIRST_DELAY if time.monotonic() - started > STEADY else delay
        log.info("the server ended with exit code %d; starting it again in %.0f s", code, delay)
        pause(delay)
        delay = min(2 * delay, LONGEST_DELAY)


def _run(arguments: list[str], home: Path, log: logging.Logger) -> int:
    token = (folder(home) / "join").read_text(encoding="utf-8").strip()
    # The token goes by the environment: command lines are visible to every user. The server ends with its input, so
    # also when this process is ended by force.
    ours = {"SWARM_JOIN": token, "SWARM_HOME": str(home), "SWARM_PARENT": "stdin", "PYTHONUTF8": "1"}
    child = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **ours},
        creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
    )
    assert child.stdout is not None
    with child:
        for line in child.stdout:
            log.info("%s", line.rstrip())
    return child.returncode


def _log(path: Path) -> logging.Logger:
    log = logging.getLogger("layerswarm.service")
    log.setLevel(logging.INFO)
    log.propagate = False
    for old in list(log.handlers):
        log.removeHandler(old)
        old.close()
    handler = RotatingFileHandler(path, maxBytes=1_000_000, backupCount=2, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    return log
