"""Disk space: what the system says of a disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.stage import BackendError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_WINDOWS_FULL = {39, 112}  # ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL


def is_full(error: OSError) -> bool:
    """Whether something failed because a disk, or the user's share of it, is full."""
    return error.errno in _FULL or getattr(error, "winerror", None) in _WINDOWS_FULL


@contextmanager
def written(path: Path, needed: int, work: str) -> Iterator[None]:
    """Turn what goes wrong with a disk into a line for the user.

    Args:
        needed: bytes that the work takes.
        work: what they are needed to do.

    Raises:
        BackendError: the disk is full, or cannot be written to.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise BackendError(
                f"the disk that holds {path} is full, and {needed / 1e9:.2f} GB are needed to {work}: free some space "
                "('swarm cache clear' deletes spans that no server here uses), or set SWARM_HOME to a folder on "
                "another disk."
            ) from error
        raise BackendError(f"{path} cannot be written: {error}") from error


def require(path: Path, needed: int) -> None:
    """Raises: OSError: fewer than `needed` bytes are free."""
    if shutil.disk_usage(path).free < needed:
        raise OSError(errno.ENOSPC, "no room")
