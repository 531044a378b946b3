"""Fetches a model's tokenizer from a server of the swarm, so that a client needs no copy of the model."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from backends.stage import Array
from routing import wire
from swarm.errors import SwarmError, Unavailable
from swarm.system import home
from swarm.tokenizer import TOKENIZER_FILES, Tokenizer

log = logging.getLogger(__name__)

MAX_FILE = 256 << 20  # bytes

Answer = tuple[wire.AnyMessage, Array | None]
Call = Callable[[wire.ServerInfo, Callable[[int], wire.Message]], Future[Answer]]


def fetch_tokenizer(servers: Sequence[wire.ServerInfo], call: Call) -> Tokenizer | None:
    """Ask one server after the other; the files are kept under `SWARM_HOME` and found there next time.

    Raises:
        Unavailable: no server answered.
    """
    problem = "no server is there"
    for server in servers:
        try:
            return _fetch_from(server, call)
        except SwarmError as error:
            problem = str(error)
            log.info("no tokenizer from %s: %s", server.name, error)
    raise Unavailable(f"the tokenizer could not be fetched from any server: {problem}")


def _fetch_from(server: wire.ServerInfo, call: Call) -> Tokenizer | None:
    listing, _ = call(server, lambda request: wire.ListFiles(request, server.model)).result()
    if not isinstance(listing, wire.Files):
        raise SwarmError(getattr(listing, "reason", "an answer that makes no sense"))
    sizes = {name: size for name, size in listing.files.items() if name in TOKENIZER_FILES and size <= MAX_FILE}
    identity = repr((server.model, sorted(server.fingerprint.items()), sorted(sizes.items())))
    folder = home.folder("tokenizers") / hashlib.sha256(identity.encode()).hexdigest()[:32]
    folder.mkdir(exist_ok=True)
    for name, size in sizes.items():
        target = folder / name
        if not target.is_file() or target.stat().st_size != size:
            _read(server, name, size, target, call)
    return Tokenizer.load(folder)


def _read(server: wire.ServerInfo, name: str, size: int, target: Path, call: Call) -> None:
    # Two clients may fetch at once: each writes a file of its own and puts it in place whole.
    part = target.with_name(f"{name}.{os.getpid()}.part")
    with home.disk_errors(target, size), part.open("wb") as file:
        while (at := file.tell()) < size:
            answer, data = call(
                server,
                lambda request, at=at: wire.ReadFile(request, server.model, name, at),  # type: ignore[misc]
            ).result()
            if not isinstance(answer, wire.FilePart) or data is None or not 0 < data.nbytes <= size - at:
                raise SwarmError(f"{server.name} did not send {name} whole")
            file.write(data.tobytes())
    part.replace(target)
