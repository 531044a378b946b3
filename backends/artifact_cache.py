"""Artifact cache: files that are made of a model once and kept, spans that were cut or compiled.

The folder of `Options.cache` has a folder for each model and backend, with one for each entry: what is of no use apart.
An entry holds `entry.json`, which says of what it was made, when it was last opened by the file's time, and a lock of
each object that has it open. A process that opens or removes an entry holds the folder's gate for that moment.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

_GATE, _LABEL, _USE = ".lock", "entry.json", ".use"


@dataclass(frozen=True, slots=True)
class ArtifactLabel:
    """Of what an entry was made, for people.

    Attributes:
        model: the model's file or folder.
        blocks: `0:15`.
        precision: of the weights.
    """

    model: str
    backend: str
    blocks: str
    precision: str


class ArtifactEntry:
    """A folder for files that are made of a model. While this object lives no process removes what is in it.

    Args:
        cache: the folder of all entries; None: this one is temporary, and goes with this object.
        group, name: which one it is. Another model or format of the files is another group.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, cache: Path | None, group: str, name: str) -> None:
        if cache is None:
            self._held: object = tempfile.TemporaryDirectory(prefix="swarm-span-", ignore_cleanup_errors=True)
            self.path = Path(self._held.name)
            return
        self.path = cache / group / name
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / _GATE):
            self.path.mkdir(parents=True, exist_ok=True)
            _is_open(self.path)
            held = FileLock(self.path / f"{uuid.uuid4().hex}{_USE}", thread_local=False)
            held.acquire()
            self._held = held  # released when it is forgotten, by the system at the latest

    def label(self, label: ArtifactLabel) -> None:
        """Say of what it was made, and that it is used now."""
        work = self.path / f".{uuid.uuid4().hex}.tmp"
        work.write_text(json.dumps(asdict(label)) + "\n", encoding="utf-8")
        work.replace(self.path / _LABEL)


@dataclass(frozen=True, slots=True)
class HeldArtifact:
    """An entry as it lies on the disk.

    Attributes:
        label: None where it was not finished.
        size: what it takes of the disk, in bytes.
        used: when it was last opened, in seconds since 1970.
        open: whether a process has it open now.
    """

    path: Path
    label: ArtifactLabel | None
    size: int
    used: float
    open: bool


def entries(cache: Path) -> list[HeldArtifact]:
    """All entries, those that were used last first."""
    if not cache.is_dir():
        return []
    with FileLock(cache / _GATE):
        found = [_read(path) for path in cache.glob("*/*") if path.is_dir()]
    return sorted(found, key=lambda kept: -kept.used)


def size(cache: Path) -> int:
    """Bytes of the disk that all entries take. Nothing is locked, so it may be asked where nothing can be written."""
    return sum(map(_room, _statuses(cache)))


def remove(cache: Path, kept: HeldArtifact) -> bool:
    """Remove an entry unless a process has it open; whether it was removed.

    Raises:
        OSError: a file cannot be deleted.
    """
    with FileLock(cache / _GATE):
        if _is_open(kept.path):
            return False
        shutil.rmtree(kept.path)
        if not any(kept.path.parent.iterdir()):
            kept.path.parent.rmdir()
    return True


def _is_open(path: Path) -> bool:
    """Whether a live process has the entry open; locks that dead ones have left are removed."""
    found = False
    for file in path.glob(f"*{_USE}"):
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found = True
            continue
        lock.release()
        file.unlink(missing_ok=True)
    return found


def _read(path: Path) -> HeldArtifact:
    statuses = list(_statuses(path))
    try:
        label = ArtifactLabel(**json.loads((path / _LABEL).read_text(encoding="utf-8")))
        used = (path / _LABEL).stat().st_mtime
    except (OSError, ValueError, TypeError):
        label, used = None, max((status.st_mtime for status in statuses), default=0.0)
    return HeldArtifact(path, label, sum(map(_room, statuses)), used, _is_open(path))


def _statuses(path: Path) -> Iterator[os.stat_result]:
    for file in path.rglob("*"):
        try:
            yield file.stat()
        except OSError:  # it was a temporary one
            continue


def _room(status: os.stat_result) -> int:
    """Of the disk; files of spans have holes, which Windows does not tell of."""
    return getattr(status, "st_blocks", -(-status.st_size // 512)) * 512
