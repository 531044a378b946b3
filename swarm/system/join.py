"""Join token of the commands: from the flag, `SWARM_JOIN`, or the swarm that was last started here."""

from __future__ import annotations

import os

from swarm.errors import SwarmError
from swarm.system import home


def save_join_token(token: str) -> None:
    """Keep the token of a swarm on this machine, readable by its owner only."""
    path = home.folder("up") / "join"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(token)


def find_join_token(given: str | None) -> str:
    """The join token that was given, or that of the swarm last started on this machine.

    Raises:
        SwarmError: there is none.
    """
    path = home.home() / "up" / "join"
    if given:
        return given
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    raise SwarmError(
        "no join token: pass --join TOKEN (swarm-directory prints it), set SWARM_JOIN, or start a swarm on this "
        "machine with 'swarm up'",
        2,
    )
