"""Identities of the processes that run from one `SWARM_HOME`: each holds a key pair of its own, which is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from routing.addresses import machine
from routing.security import Identity, SecurityError
from swarm.errors import SwarmError
from swarm.system import home

MAX_IDENTITIES = 1000


@contextmanager
def hold_identity(role: str, name: str = "") -> Iterator[tuple[str, Identity]]:
    """Hold a name and its identity while the block runs: `name`, or the first of `role-1`, `role-2`... that is free.

    Raises:
        SwarmError: another process on this machine runs under that name, or the key file is damaged.
    """
    folder = home.folder("identities")
    candidates = (
        [re.sub(r"[^\w.-]", "_", name)] if name else [f"{role}-{number}" for number in range(1, MAX_IDENTITIES + 1)]
    )
    for candidate in candidates:
        lock = FileLock(folder / f"{candidate}.lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            continue
        try:
            with home.disk_errors(folder):
                identity = Identity.load(folder / f"{candidate}.key")
        except SecurityError as error:
            lock.release()
            raise SwarmError(str(error)) from error
        try:
            yield name or candidate, identity
        finally:
            lock.release()
        return
    if name:
        raise SwarmError(f"{name!r} runs on this machine already: choose another --name")
    raise SwarmError(
        f"the limit of {MAX_IDENTITIES} processes of one kind is reached on this machine: stop some, or choose a --name"
    )


def display_name(held: str) -> str:
    """What others are told in place of `server-1`, which every machine has: its name, and which of several there."""
    number = held.rpartition("-")[2]
    return machine() if number == "1" else f"{machine()}-{number}"


def own_keys() -> frozenset[str]:
    """The public keys of everything that runs, or has run, from this `SWARM_HOME`."""
    keys = home.folder("identities").glob("*.key")
    try:
        return frozenset(Identity.load(path).public for path in keys)
    except SecurityError as error:
        raise SwarmError(str(error)) from error
