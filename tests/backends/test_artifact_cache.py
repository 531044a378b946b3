"""What is made of a model is kept, listed, and removed when no process has it open."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from filelock import FileLock

from backends.artifact_cache import ArtifactEntry, ArtifactLabel, entries, remove, size

LABEL = ArtifactLabel("/models/tiny", "llama_cpp", "0:3", "q4_0")
HOLDER = """
import sys
from pathlib import Path
from backends.artifact_cache import ArtifactEntry
entry = ArtifactEntry(Path(sys.argv[1]), "model-1", "0-3")
print("open", flush=True)
sys.stdin.read()
"""


def test_an_entry_is_listed_with_what_it_was_made_of_and_takes(tmp_path: Path) -> None:
    assert entries(tmp_path / "none") == [] and size(tmp_path / "none") == 0
    first, second = ArtifactEntry(tmp_path, "model-1", "0-3"), ArtifactEntry(tmp_path, "model-1", "3-6")
    (first.path / "span").write_bytes(b"x" * 200_000)
    first.label(LABEL)
    listed = {kept.path: kept for kept in entries(tmp_path)}
    assert listed[first.path].label == LABEL and listed[second.path].label is None
    assert 200_000 <= listed[first.path].size <= size(tmp_path) < 300_000
    assert listed[first.path].used > listed[second.path].used - 60
    assert all(kept.open for kept in listed.values())


def test_a_hole_in_a_file_takes_nothing(tmp_path: Path) -> None:
    entry = ArtifactEntry(tmp_path, "model-1", "0-3")
    with (entry.path / "span").open("wb") as file:
        file.truncate(1 << 30)
    (kept,) = entries(tmp_path)
    assert kept.size < (1 << 20) or sys.platform == "win32"


def test_what_is_open_stays_and_what_is_not_goes(tmp_path: Path) -> None:
    one = ArtifactEntry(tmp_path, "model-1", "0-3")
    another = ArtifactEntry(tmp_path, "model-1", "0-3")  # two servers of the same span
    (kept,) = entries(tmp_path)
    assert not remove(tmp_path, kept)
    del one
    assert not remove(tmp_path, kept) and another.path.is_dir()
    del another
    (kept,) = entries(tmp_path)
    assert not kept.open
    assert remove(tmp_path, kept)
    assert not kept.path.parent.exists() and entries(tmp_path) == []


def test_another_process_keeps_its_entry_until_it_dies_however_that_happens(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        (kept,) = entries(tmp_path)
        assert kept.open and not remove(tmp_path, kept)
        holder.kill()
        holder.wait()
        (kept,) = entries(tmp_path)
        assert not kept.open and not list(kept.path.glob("*.use"))
        assert remove(tmp_path, kept)


def test_who_opens_an_entry_while_one_is_removed_waits_and_finds_its_folder(tmp_path: Path) -> None:
    path = ArtifactEntry(tmp_path, "model-1", "0-3").path
    opened: list[ArtifactEntry] = []
    with FileLock(tmp_path / ".lock"):  # as `remove` holds it
        opener = threading.Thread(target=lambda: opened.append(ArtifactEntry(tmp_path, "model-1", "0-3")))
        opener.start()
        assert not opened
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    opener.join(30)
    (kept,) = entries(tmp_path)
    assert kept.path == path and kept.open
    assert not remove(tmp_path, kept)


def test_without_a_cache_it_is_temporary() -> None:
    entry = ArtifactEntry(None, "model-1", "0-3")
    path = entry.path
    assert path.is_dir()
    del entry
    assert not path.exists()
