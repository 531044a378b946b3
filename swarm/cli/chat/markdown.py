"""Markdown in a terminal, as it comes: what is complete is printed for good, the rest is drawn again and again."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

FENCES = ("```", "~~~")


def settled_length(text: str) -> int:
    """The length of the text whose look no later text changes: the last blank line outside of a block of code."""
    at, fence, settled = 0, "", 0
    for line in text.splitlines(keepends=True):
        at += len(line)
        mark = line.strip()[:3]
        if fence:
            fence = "" if mark == fence else fence
        elif mark in FENCES:
            fence = mark
        elif not line.strip() and line.endswith("\n"):
            settled = at
    return settled


class MarkdownWriter:
    """Markdown writer: draws an answer that comes in pieces; where the output is no terminal, as plain text."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def write(self, piece: str) -> None:
        """Add a piece of the answer, and draw what it changes."""
        if self._live is None:
            self._console.file.write(piece)
            self._console.file.flush()
            return
        self._text += piece
        if settled := settled_length(self._text):
            self._live.console.print(Markdown(self._text[:settled]), end="\n")
            self._text = self._text[settled:]
        self._live.update(Markdown(self._text), refresh=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is None:
            self._console.file.write("\n")
            self._console.file.flush()
            return
        self._live.update("", refresh=True)
        self._live.stop()
        if self._text.strip():
            self._console.print(Markdown(self._text))


def until_stop(pieces: Iterable[str], stop: str) -> Iterable[str]:
    """The pieces up to the text `stop`, without it; all of them where it is empty or does not come."""
    held = ""
    for piece in pieces:
        held += piece
        if stop and stop in held:
            yield held[: held.index(stop)]
            return
        keep = next((n for n in range(min(len(stop), len(held)), 0, -1) if stop.startswith(held[-n:])), 0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held
