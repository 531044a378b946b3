"""The small files of a model that a server gives to clients without them: tokenizer, configuration, chat template."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backends.stage import Array
from routing import wire
from swarm.tokenizer import TOKENIZER_FILES

PART = 1 << 20  # bytes


class ModelFiles:
    """Model files: answers clients that have no tokenizer of their own.

    Args:
        model: the model's name in the swarm.
        folder: where its files are.
    """

    def __init__(self, model: str, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._known: dict[str, Array] = {}

    def answer(self, message: wire.ListFiles | wire.ReadFile) -> tuple[wire.Message, Array | None]:
        """Nothing but the files that are listed can be read."""
        if message.model != self._model:
            text = f"{message.model!r} is not served here"
            return wire.Refused(wire.RefusalCode.UNKNOWN_MODEL, text, request=message.request), None
        paths = {name: self._folder / name for name in TOKENIZER_FILES}
        if isinstance(message, wire.ListFiles):
            sizes = {name: path.stat().st_size for name, path in paths.items() if path.is_file()}
            return wire.Files(message.request, sizes), None
        path = paths.get(message.name)
        if path is None or not path.is_file() or not path.stat().st_size:
            return wire.Refused(
                wire.RefusalCode.UNKNOWN_FILE, f"{message.name!r} cannot be read here", request=message.request
            ), None
        part = self._mapped(message.name)[message.offset : message.offset + PART]
        return wire.FilePart(message.request, message.offset), part

    def _mapped(self, name: str) -> Array:
        """A file's bytes, the same memory each time: parts that a slow reader lets queue up cost nothing more."""
        if name not in self._known:
            self._known[name] = np.memmap(self._folder / name, np.uint8, "r")
        return self._known[name]
