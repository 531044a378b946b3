"""GGUF files as models: a folder with the tokenizer and configuration that clients need, which points to the file."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from swarm.errors import SwarmError
from swarm.models import pypi
from swarm.system.home import disk_errors, folder
from swarm.tokenizer import TOKENIZER_FILES

log = logging.getLogger(__name__)

POINTER = "gguf.json"  # see backends/llamacpp/ggufs.py
_ON_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./-]+\.gguf)|:([\w.-]+))", re.IGNORECASE)
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf$)")


def file_of(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the one in a folder without safetensors; None: it means no GGUF.

    Raises:
        SwarmError: the folder holds several models.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".gguf" else None
    if any(path.glob("*.safetensors")) or (path / POINTER).exists():
        return None
    files = [file for file in sorted(path.glob("*.gguf")) if _is_first(file.name)]
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise SwarmError(f"{path} holds {len(files)} GGUF models; give the path of one: {names}", exit_code=2)
    return files[0] if files else None


def name_of(file: Path) -> str:
    """What a model is called: its file's name."""
    return _PART.sub("", file.name)[: -len(".gguf")]


def adopt(file: Path) -> Path:
    """The folder of a GGUF file's model below `SWARM_HOME`, made unless it is there. The file stays where it is.

    Tokenizer and configuration are those beside the file, or are taken out of it. One process at a time for one file:
    the caller holds a lock.

    Raises:
        SwarmError: its tokenizer cannot be read.
    """
    file = file.resolve()
    status = file.stat()
    facts = f"{file} {status.st_size} {status.st_mtime_ns}"
    target = folder("models") / ".gguf" / f"{name_of(file)}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    if (target / POINTER).exists():
        return target
    with disk_errors(target):
        target.parent.mkdir(exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
        try:
            if (file.parent / "config.json").exists() and (file.parent / "tokenizer.json").exists():
                for name in TOKENIZER_FILES:
                    if (file.parent / name).is_file():
                        shutil.copy(file.parent / name, work / name)
            else:
                log.info("taking the tokenizer out of %s (once)", file.name)
                pypi.convert_gguf(file, work, "--tokenizer")
            (work / POINTER).write_text(json.dumps({"file": str(file)}) + "\n", encoding="utf-8")
            pypi.move_into_place(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def on_hub(model: str) -> tuple[str, str] | None:
    """`owner/name/FILE.gguf` or `owner/name:QUANTISATION` as repository and what was asked for; None: neither."""
    found = _ON_HUB.fullmatch(model)
    return (found[1], found[2] or found[3]) if found else None


def choose(names: Iterable[str], wanted: str, repo: str) -> list[str]:
    """The files of a repository to fetch: one, or all parts of one.

    Raises:
        SwarmError: none fits, or several do.
    """
    files = sorted(name for name in names if name.lower().endswith(".gguf"))
    if wanted.lower().endswith(".gguf"):
        fitting = [name for name in files if name == wanted]
    else:
        fitting = [name for name in files if re.search(rf"(^|[-_.]){re.escape(wanted)}([-_.]|$)", name, re.IGNORECASE)]
    whole = {_PART.sub("", name) for name in fitting}
    if len(whole) != 1:
        there = ", ".join(files[:8]) or "no GGUF file"
        raise SwarmError(f"{repo} has {len(whole) or 'no'} GGUF models that {wanted} fits; it has {there}", exit_code=2)
    return [name for name in files if _PART.sub("", name) in whole]


def _is_first(name: str) -> bool:
    part = _PART.search(name)
    return part is None or int(part[1]) == 1
