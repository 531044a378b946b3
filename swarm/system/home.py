"""`SWARM_HOME`: the folder of state and models on this machine, and errors of its disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from backends.disk_space import is_full
from swarm.errors import SwarmError

_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION, ERROR_DIR_NOT_EMPTY (a file that is deleted is still open),
# ERROR_USER_MAPPED_FILE
_WINDOWS_IN_USE = {32, 33, 145, 1224}


def home() -> Path:
    """The folder named by `SWARM_HOME`, or the platform's folder for a user's data. It need not exist yet."""
    chosen = os.environ.get("SWARM_HOME")
    return (
        Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_data_dir("swarm", appauthor=False))
    )


def folder(name: str) -> Path:
    """A folder below `home()`, made when it is missing; readable by its owner only, because keys lie there.

    Raises:
        SwarmError: it cannot be made.
    """
    path = home() / name
    with disk_errors(path):
        home().mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def disk_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a full disk and missing permissions into a `SwarmError` that names `path`; let other errors through.

    Args:
        needed: bytes that the work takes, for the message; 0 where that is not known.
    """
    try:
        yield
    except OSError as error:
        raise _explained(error, path, needed) from error


def _explained(error: OSError, path: Path, needed: int) -> Exception:
    if is_full(error):
        return SwarmError(_full(path, needed))
    if getattr(error, "winerror", None) in _WINDOWS_IN_USE:
        return in_use(Path(error.filename or path))
    if error.errno in _FORBIDDEN:
        return SwarmError(
            f"{path} cannot be written to ({error.strerror}). Give this user the right to, or set SWARM_HOME."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return SwarmError(f"{error.filename or path} is a file, a folder is needed there. Move it, or set SWARM_HOME.")
    return error


def in_use(path: Path) -> SwarmError:
    """Windows neither deletes nor replaces a file that a program has open, such as the weights that a server maps."""
    return SwarmError(f"{path} is in use by another program: stop what serves or reads it, then start this again.")


def require_space(path: Path, needed: int) -> None:
    """Refuse work that the disk of `path` has no room for.

    Raises:
        SwarmError: fewer than `needed` bytes are free.
    """
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if shutil.disk_usage(existing).free < needed:
        raise SwarmError(_full(path, needed))


def _full(path: Path, needed: int) -> str:
    need = f" {size(needed)} are needed:" if needed else ""
    return f"the disk that holds {path} is full.{need} free some space, or set SWARM_HOME to a folder on another disk."


def size(count: int) -> str:
    """Bytes for people: `93 MB`, `1.2 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
