"""Function calls in the text that a model writes, read as the text comes. No I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from openai_api.generation.stops import StopScanner

ARGUMENTS = ("arguments", "parameters")  # what families call them


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a function call.

    Attributes:
        index: of the call in the answer.
        arguments: what comes to the arguments, which are JSON, with this part.
        first: nothing of the call came before.
    """

    index: int
    id: str
    name: str
    arguments: str
    first: bool


@dataclass(frozen=True)
class CallSyntax:
    """Call syntax: how a family of models writes calls; `opening`, objects between `separators`, `closing`.

    Attributes:
        opening: empty: an answer that begins with an object consists of calls.
        alternative: also opens calls, where it begins the answer.
    """

    opening: str
    closing: str
    separators: str = " \t\r\n"
    alternative: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.opening, self.closing, self.alternative)))


class ToolCallParser:
    """Divides an answer into text and calls.

    An object that is no call of a known function stays text.

    Args:
        names: the functions that can be called.
        most: calls to read; after as many the answer is `complete`.
        new_id: makes the id of a call.
    """

    def __init__(self, syntax: CallSyntax, names: Collection[str], most: int, new_id: Callable[[], str]) -> None:
        self._syntax = syntax
        self._names = names
        self._most = most
        self._new_id = new_id
        self._held = ""
        self._inside = False
        self._begun = False  # something but white space has come
        self._opened = ""  # what opened the calls, as long as none has followed
        self._object: _Object | None = None
        self._current: ToolCallDelta | None = None  # the first part of the call that is being read
        self._given = 0  # characters of its arguments
        self.calls = 0

    @property
    def complete(self) -> bool:
        return self.calls >= self._most and self._object is None

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """The text and the parts of calls that have become certain."""
        self._held += text
        shown = ""
        parts: list[ToolCallDelta] = []
        while self._held and not self.complete:
            before = (self._held, self._inside, self._object)
            if self._object is not None:
                shown += self._read(parts)
            elif self._inside:
                shown += self._between()
            else:
                shown += self._outside()
            if (self._held, self._inside, self._object) == before:
                break
        return shown, parts

    def flush(self) -> str:
        """What was held back, once no more comes: text, unless it is the rest of a call that was begun."""
        rest = ""
        if self._current is None:
            rest = self._opened + (self._object.raw if self._object else "") + self._held
        self._held, self._object = "", None
        return rest if not self.calls or rest.strip() else ""

    def _outside(self) -> str:
        """Text, up to where calls open."""
        stripped = self._held.lstrip()
        for opening in filter(None, (self._syntax.alternative, "" if self._syntax.opening else "{")):
            if not self._begun and stripped.startswith(opening):
                self._inside, self._begun = True, True
                self._opened = "" if opening == "{" else opening
                self._held = stripped[len(self._opened) :]
                return ""
            if not self._begun and opening.startswith(stripped):
                return ""
        self._begun = self._begun or bool(stripped)
        scanner = StopScanner([self._syntax.opening] if self._syntax.opening else [])
        shown = scanner.push(self._held)
        if scanner.found is None:
            self._held = self._held[len(shown) :]
        else:
            self._inside, self._opened = True, scanner.found
            self._held = self._held[len(shown) + len(scanner.found) :]
        return shown if shown.strip() or not self.calls else ""

    def _between(self) -> str:
        """From one object to the next, or to the end of the calls; text where there was no call after all."""
        held = self._held
        self._held = held.lstrip(self._syntax.separators)
        if self._opened:
            self._opened += held[: len(held) - len(self._held)]
        closing = self._syntax.closing
        if self._held.startswith("{"):
            self._object = _Object()
        elif closing and self._held.startswith(closing):
            self._held, self._inside = self._held[len(closing) :], False
        elif self._held and not (closing and closing.startswith(self._held)):
            self._inside, text, self._opened = False, self._opened, ""
            return text
        return ""

    def _read(self, parts: list[ToolCallDelta]) -> str:
        assert self._object is not None
        read, self._held = self._object, self._object.push(self._held)
        name = read.name
        if self._current is None and name in self._names and (read.done or read.arguments.startswith("{")):
            self._current = ToolCallDelta(self.calls, self._new_id(), name, "", first=True)
            parts.append(self._current)
            self.calls += 1
            self._given, self._opened = 0, ""
        if self._current is not None:
            arguments = read.arguments or ("{}" if read.done else "")
            if new := arguments[self._given :]:
                self._given = len(arguments)
                parts.append(ToolCallDelta(self._current.index, self._current.id, name, new, first=False))
        if not read.done:
            return ""
        text = "" if self._current is not None else self._opened + read.raw
        self._object = self._current = None
        if text:
            self._inside, self._opened = False, ""
        return text


class _Object:
    """A JSON object that is being read: its name and its arguments, as far as they have come."""

    def __init__(self) -> None:
        self.raw = ""
        self.done = False
        self.name = ""
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self._key = ""
        self._start = 0  # where the literal or value that was seen last in the object itself begins
        self._value: int | None = None  # where the value of the key begins
        self._arguments: tuple[int, int | None] | None = None

    @property
    def arguments(self) -> str:
        """JSON, without white space around it; a text that holds JSON, once it is complete, as what it holds."""
        if self._arguments is None:
            return ""
        start, end = self._arguments
        text = self.raw[start:end].strip()
        if not text.startswith('"'):
            return text
        return _text(text) if end is not None else ""

    def push(self, text: str) -> str:
        """Take what belongs to the object; gives back the rest."""
        begin = len(self.raw)
        self.raw += text
        for at, character in enumerate(text, begin):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._quoted = False
                continue
            if character == '"':
                self._quoted = True
                if self._depth == 1 and self._value is None:
                    self._start = at
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._end_value(at)
                    self.done, self.raw = True, self.raw[: at + 1]
                    return text[at + 1 - begin :]
            elif character == ":" and self._depth == 1 and self._value is None:
                self._key, self._value = _text(self.raw[self._start : at].strip()), at + 1
                if self._key in ARGUMENTS:
                    self._arguments = (at + 1, None)
            elif character == "," and self._depth == 1:
                self._end_value(at)
        return ""

    def _end_value(self, at: int) -> None:
        if self._value is None:
            return
        if self._key in ARGUMENTS:
            self._arguments = (self._value, at)
        elif self._key == "name":
            self.name = _text(self.raw[self._value : at].strip())
        self._value = None


def _text(literal: str) -> str:
    try:
        value = json.loads(literal)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""


def merged_calls(parts: Collection[ToolCallDelta]) -> Iterator[ToolCallDelta]:
    """Whole calls out of their parts."""
    for first in (part for part in parts if part.first):
        arguments = "".join(part.arguments for part in parts if part.index == first.index)
        yield ToolCallDelta(first.index, first.id, first.name, arguments, first=True)
