"""Models from the Hugging Face hub, with finite patience.

One question tells what the repository holds; the files are then fetched one by one, the small ones first, so that
weights are only ever there beside their configuration. An interrupted download goes on where it stopped.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from tqdm.auto import tqdm

from backends.checkpoint.headers import INDEX, SINGLE
from swarm.errors import SwarmError
from swarm.models.shards import is_complete, shards_of_span, weight_map
from swarm.system.home import disk_errors, require_space
from swarm.system.progress import Progress
from swarm.tokenizer import TOKENIZER_FILES

log = logging.getLogger(__name__)

LOOK_UP_TIMEOUT = 8.0  # seconds in which the hub must have said what a repository holds
_READ_TIMEOUT = 5.0  # seconds without a byte
_TRIES = 3

ShardChoice = Callable[[dict[str, str]], Sequence[str]]


class HubUnreachable(Exception):
    """A hub that gave no answer; the text is the reason."""


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository of the hub: its commit, and the size in bytes of every file."""

    name: str
    commit: str
    sizes: dict[str, int]


def look_up(repo: str, *, endpoint: str | None = None, patience: float = LOOK_UP_TIMEOUT) -> HubRepo:
    """Ask the hub for a repository's files, for at most `patience` seconds.

    Raises:
        Unreachable: no answer in time; no network; the hub is ill.
        SwarmError: the hub answered that the repository cannot be had.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(
                HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=min(_READ_TIMEOUT, patience))
            )
        except Exception as error:  # noqa: BLE001 - handed to the caller's thread, which sorts it
            answers.put(error)

    # A thread, because looking up the hub's address can hang for longer than any timeout of the request.
    threading.Thread(target=ask, name="hub-look-up", daemon=True).start()
    try:
        answer = answers.get(timeout=patience)
    except queue.Empty:
        raise HubUnreachable(f"no answer within {patience:.0f} s") from None
    if isinstance(answer, Exception):
        raise _user_error(repo, answer) from answer
    return HubRepo(repo, answer.sha, {file.rfilename: file.size or 0 for file in answer.siblings or ()})


def download(
    repo: HubRepo, folder: Path, *, choose: ShardChoice | None = None, progress: Progress, endpoint: str | None = None
) -> None:
    """Fetch configuration, tokenizer and weights into `folder`.

    Args:
        choose: which weight files of an index to take; all by default.

    Raises:
        SwarmError: a gated or incomplete repository, a full disk, a connection that broke too often.
    """
    small = [name for name in (*TOKENIZER_FILES, "LICENSE", "LICENSE.txt", INDEX) if name in repo.sizes]
    if "config.json" not in small or not {INDEX, SINGLE} & set(repo.sizes):
        raise SwarmError(
            f"{repo.name} on the Hugging Face hub has no safetensors weights with a config.json. "
            "Take a repository of the model in that format."
        )
    for name in small:
        _fetch(repo, name, folder, progress, 0, 0, endpoint)
    shards = weight_map(folder)
    files = [SINGLE] if shards is None else list(choose(shards) if choose else sorted(set(shards.values())))
    missing = [name for name in files if not (folder / name).exists()]
    total = sum(repo.sizes.get(name, 0) for name in missing)
    require_space(folder, total)
    done = 0
    for name in missing:
        _fetch(repo, name, folder, progress, done, total, endpoint)
        done += repo.sizes.get(name, 0)


def download_files(
    repo: HubRepo, names: Sequence[str], folder: Path, *, progress: Progress, endpoint: str | None = None
) -> None:
    """Fetch these files, and nothing else.

    Raises:
        SwarmError: as `download`.
    """
    total, done = sum(repo.sizes.get(name, 0) for name in names), 0
    require_space(folder, total)
    for name in names:
        if not (folder / name).exists():
            _fetch(repo, name, folder, progress, done, total, endpoint)
        done += repo.sizes.get(name, 0)


def fetch_span(
    repo: str, start: int, end: int, folder: Path, *, progress: Progress, endpoint: str | None = None
) -> None:
    """Fetch only the weight files that hold blocks `start:end`, with configuration and tokenizer.

    The folder can be served by a backend that opens nothing but its span's tensors. Tested against a stand-in that
    speaks the hub's protocol, not against the hub itself.

    Raises:
        Unreachable: as `look_up`.
        SwarmError: as `look_up` and `download`.
    """
    found = look_up(repo, endpoint=endpoint)
    download(
        found, folder, choose=lambda index: shards_of_span(index, start, end), progress=progress, endpoint=endpoint
    )


def cached_model(repo: str) -> Path | None:
    """The whole model in the cache that other programs of the hub share, so that it need not be kept twice."""
    try:
        config = try_to_load_from_cache(repo, "config.json")
    except HFValidationError:
        return None
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder is not None and is_complete(folder) else None


def _fetch(
    repo: HubRepo, name: str, folder: Path, progress: Progress, before: int, total: int, endpoint: str | None
) -> None:
    class Meter(tqdm):  # type: ignore[misc] # comes without types
        """What the hub's client drives instead of a bar of its own."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            self._done = int(options.get("initial") or 0)
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self._done += int(n or 0)
            if total:
                progress(repo.name, before + self._done, total)
            return None

    for left in reversed(range(_TRIES)):
        try:
            with disk_errors(folder, repo.sizes.get(name, 0)):
                hf_hub_download(
                    repo.name,
                    name,
                    revision=repo.commit,
                    local_dir=folder,
                    etag_timeout=_READ_TIMEOUT,
                    endpoint=endpoint,
                    tqdm_class=Meter,
                )
            return
        except SwarmError:
            raise
        except Exception as error:
            sorted_error = _user_error(repo.name, error)
            if isinstance(sorted_error, SwarmError):
                raise sorted_error from error
            if not left:
                raise SwarmError(
                    f"the download of {repo.name} broke {_TRIES} times at {name} ({sorted_error}). "
                    "Run the command again: it goes on where it stopped."
                ) from error
            log.warning("the download of %s broke (%s), trying again", name, sorted_error)


def _user_error(repo: str, error: BaseException) -> SwarmError | HubUnreachable:
    """Tell a repository that cannot be had from a hub that cannot be reached, whatever library carries the requests."""
    if isinstance(error, GatedRepoError):
        return SwarmError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then run 'hf auth login' on this "
            "machine and start again."
        )
    if isinstance(error, RepositoryNotFoundError):
        return SwarmError(
            f"the Hugging Face hub has no model {repo}, or it is private. Check the spelling; for a private one run "
            "'hf auth login'."
        )
    if isinstance(error, HFValidationError):
        return SwarmError(f"{repo} is not a name that the Hugging Face hub can have: {error}")
    if isinstance(error, HfHubHTTPError) and error.response is not None and error.response.status_code < 500:
        return SwarmError(f"the Hugging Face hub refused {repo}: {str(error).splitlines()[0]}")
    cause = error.__cause__ or error
    return HubUnreachable(str(cause).splitlines()[0] if str(cause) else type(cause).__name__)
