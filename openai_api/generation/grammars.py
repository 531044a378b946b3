"""The grammars that answers must follow: a response format, calls that are asked for, or both. No I/O.

In llguidance's Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openai_api.generation.tool_formats import ToolFormat
from swarm.grammar import guided

MOST_CALLS = 16  # of one answer

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class GrammarFunction:
    """A function that may be called. `strict`: the arguments must fit the schema even where no call is asked for."""

    name: str
    parameters: Schema
    strict: bool


def calls(
    family: ToolFormat,
    functions: Sequence[GrammarFunction],
    special: Callable[[str], int | None],
    *,
    required: bool,
    parallel: bool,
    content: Schema | None = None,
) -> str:
    """The grammar of an answer with calls of these functions.

    Args:
        special: the id of a text that is one special token, else None.
        required: the answer consists of calls; otherwise text may come before them, or instead.
        content: where no call is required, the text that there may be instead must fit this JSON schema
            (see `swarm.grammar.guided`).
    """
    writer = _Writer(family, functions, special)
    most = MOST_CALLS if parallel and family.parallel else 1
    if required:
        return writer.grammar(writer.block(most))
    if content is not None:
        writer.rules.append(f"content: %json {_json(content)}")
        return writer.grammar(f"{writer.block(most)} | content")
    return writer.grammar(writer.among_text(most))


class _Writer:
    def __init__(
        self, family: ToolFormat, functions: Sequence[GrammarFunction], special: Callable[[str], int | None]
    ) -> None:
        self._family = family
        self._special = special
        self.rules = [f"object: {' | '.join(f'object_{i}' for i in range(len(functions)))}"]
        for i, function in enumerate(functions):
            head = f'{{"name": {json.dumps(function.name)}, "{family.arguments}": '
            schema = guided(function.parameters, function.strict)
            self.rules.append(f'object_{i}: {_quoted(head)} arguments_{i} "}}"')
            self.rules.append(f"arguments_{i}: %json {_json(schema)}")

    def grammar(self, start: str) -> str:
        return "\n".join([f"start: {start}", *self.rules])

    def block(self, most: int) -> str:
        """All calls, one after the other."""
        family = self._family
        opening, closing = self._literal(family.syntax.opening), self._literal(family.syntax.closing)
        body = f"{opening} {_quoted(family.before)} object {_quoted(family.after)} {closing}"
        more = f"{_quoted(family.between)} object"
        if family.wrapped:
            more = f"{_quoted(family.between)} {body}"
        elif most > 1:
            body, rest = f"{opening} {_quoted(family.before)} object", f"{_quoted(family.after)} {closing}"
            return f"{body} ({more}){{0,{most - 1}}} {rest}"
        return body if most == 1 else f"{body} ({more}){{0,{most - 1}}}"

    def among_text(self, most: int) -> str:
        """Text, and calls from where they open."""
        family = self._family
        self.rules.append("TEXT: /(.|\\n)*/")
        if not family.syntax.opening:
            self.rules.append("PROSE: /([^{](.|\\n)*)?/")
            return f"{self.block(most)} | PROSE"
        token = self._special(family.syntax.opening)
        if token is None:
            self.rules.append(f"head[lazy]: TEXT {_quoted(family.syntax.opening)}")
        else:
            self.rules.append(f"head: TEXT <[{token}]>")
        opening = self._literal(family.syntax.opening)
        rest = self.block(most if not family.wrapped else 1).removeprefix(opening)
        self.rules.append(f"section: head {rest}")
        return f"section{{0,{most if family.wrapped else 1}}} TEXT"

    def _literal(self, text: str) -> str:
        token = self._special(text) if text else None
        return _quoted(text) if token is None else f"<[{token}]>"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _json(schema: Schema) -> str:
    return json.dumps(schema, ensure_ascii=False)
