"""Chunks: how OpenAI's chat completions and completions are written; `choices` in one object, or in a stream of chunks,
which are events `data: {chunk}`, the last one `data: [DONE]`. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from openai_api.errors import ApiError
from openai_api.generation.choice import ChoicePiece, Finish
from openai_api.generation.generation import Answer, Json, sse

DONE = b"data: [DONE]\n\n"


class ChoiceFormat(Protocol):
    """Choice format: how completions, or chat completions, are written. Every method gives an item of `choices`."""

    @property
    def whole_object(self) -> str:
        """What the field `object` says, and of a stream's chunks `chunk_object`."""
        ...

    @property
    def chunk_object(self) -> str: ...

    def opening(self, index: int) -> Json | None:
        """What comes before the first piece of a choice, if anything."""
        ...

    def chunk(self, index: int, piece: ChoicePiece) -> Json: ...

    def closing(self, index: int, finish: Finish) -> Json: ...

    def whole(self, index: int, piece: ChoicePiece) -> Json:
        """A choice that was not streamed; `piece` holds all of it."""
        ...


@dataclass(frozen=True)
class Chunked:
    """The `Output` of a form."""

    form: ChoiceFormat

    def body(self, answer: Answer, pieces: Sequence[ChoicePiece], used: int) -> Json:
        choices = [self.form.whole(index, piece) | ids_of(answer, piece.tokens) for index, piece in enumerate(pieces)]
        head = head_of(answer, self.form.whole_object)
        return {**head, "choices": choices, "usage": usage(answer.prompt_tokens, used)}

    def stream(self, answer: Answer) -> Chunks:
        return Chunks(self.form, answer)

    def failure(self, problem: ApiError) -> bytes:
        return sse(problem.body())


class Chunks:
    """The `Stream` of a form."""

    def __init__(self, form: ChoiceFormat, answer: Answer) -> None:
        self._form = form
        self._answer = answer
        self._opened: set[int] = set()

    def piece(self, index: int, piece: ChoicePiece) -> Iterator[bytes]:
        form, answer = self._form, self._answer
        if index not in self._opened and (opening := form.opening(index)) is not None:
            yield self._event([opening])
        self._opened.add(index)
        if piece.text or piece.entries or piece.calls or (answer.token_ids and piece.tokens):
            yield self._event([form.chunk(index, piece) | ids_of(answer, piece.tokens)])
        if piece.finish:
            yield self._event([form.closing(index, piece.finish)])

    def end(self, used: int) -> Iterator[bytes]:
        if self._answer.usage:
            yield self._event([], usage(self._answer.prompt_tokens, used))
        yield DONE

    def _event(self, choices: list[Json], used: Json | None = None) -> bytes:
        chunk = {**head_of(self._answer, self._form.chunk_object), "choices": choices}
        return sse(chunk | {"usage": used} if self._answer.usage else chunk)


def head_of(answer: Answer, kind: str) -> Json:
    return {
        "id": answer.id,
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": answer.fingerprint,
    }


def ids_of(answer: Answer, tokens: tuple[int, ...]) -> Json:
    return {"token_ids": list(tokens)} if answer.token_ids else {}


def usage(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
