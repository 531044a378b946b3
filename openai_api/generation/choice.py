"""One choice of an answer: from tokens to pieces of text, cut at stop strings. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from openai_api.generation.stops import StopScanner
from openai_api.generation.tool_parser import ToolCallDelta, ToolCallParser
from routing import wire
from swarm.tokenizer import Tokenizer

Finish = Literal["", "stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A token of the text, for log-probabilities.

    Attributes:
        offset: where its text begins, in characters of the choice.
        logprob: None for the first token of a prompt, which nothing precedes.
        top: the likeliest tokens in its place, the likeliest first.
    """

    token: int
    offset: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class ChoicePiece:
    """A step of a choice: what can be shown now.

    Attributes:
        text: may be empty, while a character or a stop string is incomplete.
        entries: the tokens whose text begins in what has been shown so far; the end token is none of them.
        tokens: ids that were generated, in order: all of them, whatever of their text is shown.
        finish: set on the last piece.
        stop: the stop string that ended the choice, if one did.
        calls: parts of function calls; their text is not in `text`.
    """

    text: str = ""
    entries: tuple[TokenEntry, ...] = ()
    tokens: tuple[int, ...] = ()
    finish: Finish = ""
    stop: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class Choice:
    """The state of one choice.

    Args:
        tokenizer: None for a model that has none: its choices have token ids and no text.
        stops: stop strings.
        echo: characters of the prompt that the choice's text begins with; stop strings are not looked for there.
        reader: of function calls, where there may be some.
        keep: special tokens that the text shows, because calls begin or end with them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: Sequence[str] = (),
        echo: int = 0,
        reader: ToolCallParser | None = None,
        keep: Collection[int] = (),
    ) -> None:
        self._detokenizer = tokenizer.detokenizer(keep=keep) if tokenizer else None
        self._reader = reader
        self._scanner = StopScanner(stops)
        self._waiting: deque[TokenEntry] = deque()
        self._read = echo  # characters of the choice as far as the detokenizer knows it
        self._shown = echo  # characters that were let through

    def push(self, step: wire.Token) -> ChoicePiece:
        """Take the next token; the piece's `finish` is set when it was the last one."""
        return self._with_calls(self._push(step))

    def end(self) -> ChoicePiece:
        """The last piece where no token says that it is the last."""
        return self._with_calls(self._end("length", ()))

    def _with_calls(self, piece: ChoicePiece) -> ChoicePiece:
        if self._reader is None:
            return piece
        text, calls = self._reader.push(piece.text)
        finish = piece.finish
        if self._reader.complete:
            finish = "tool_calls"
        elif finish:
            text += self._reader.flush()
            finish = "tool_calls" if finish == "stop" and self._reader.calls else finish
        return replace(piece, text=text, finish=finish, calls=tuple(calls))

    def _push(self, step: wire.Token) -> ChoicePiece:
        if step.finish == "stop":
            return self._end("stop", (step.token,))
        self._waiting.append(TokenEntry(step.token, self._read, step.logprob, step.top))
        text = self._let_through(self._detokenizer.push(step.token) if self._detokenizer else "")
        if self._scanner.found is not None:
            return ChoicePiece(text, self._ready(cut=True), (step.token,), "stop", self._scanner.found)
        if step.finish == "length":
            last = self._end("length", (step.token,))
            return replace(last, text=text + last.text)
        return ChoicePiece(text, self._ready(), (step.token,))

    def _end(self, finish: Finish, tokens: tuple[int, ...]) -> ChoicePiece:
        text = self._let_through(self._detokenizer.flush() if self._detokenizer else "")
        if self._scanner.found is not None:
            return ChoicePiece(text, self._ready(cut=True), tokens, "stop", self._scanner.found)
        held = self._scanner.flush()
        self._shown += len(held)
        entries = tuple(self._waiting)
        self._waiting.clear()
        return ChoicePiece(text + held, entries, tokens, finish)

    def _let_through(self, text: str) -> str:
        self._read += len(text)
        shown = self._scanner.push(text)
        self._shown += len(shown)
        return shown

    def _ready(self, cut: bool = False) -> tuple[TokenEntry, ...]:
        """The entries whose text begins in what is shown. After a cut the others will never be."""
        ready = []
        while self._waiting and (self._waiting[0].offset < self._shown or self._detokenizer is None):
            ready.append(self._waiting.popleft())
        if cut:
            self._waiting.clear()
        return tuple(ready)
