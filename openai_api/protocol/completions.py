"""`POST /v1/completions`: prompts continued as they are. Everything here is pure."""

from __future__ import annotations

from dataclasses import dataclass

from openai_api.generation.choice import ChoicePiece, Finish, TokenEntry
from openai_api.generation.generation import Json, number, top_of
from openai_api.generation.token_texts import TokenTexts


@dataclass(frozen=True)
class CompletionFormat:
    """`logprobs`: whether choices show log-probabilities."""

    texts: TokenTexts
    logprobs: bool
    whole_object: str = "text_completion"
    chunk_object: str = "text_completion"

    def opening(self, index: int) -> Json | None:
        return None

    def chunk(self, index: int, piece: ChoicePiece) -> Json:
        return _choice(index, piece.text, self._logprobs(piece), None)

    def closing(self, index: int, finish: Finish) -> Json:
        return _choice(index, "", None, finish)

    def whole(self, index: int, piece: ChoicePiece) -> Json:
        return _choice(index, piece.text, self._logprobs(piece), piece.finish)

    def _logprobs(self, piece: ChoicePiece) -> Json | None:
        if not self.logprobs:
            return None
        return {
            "tokens": [self.texts.text(entry.token) for entry in piece.entries],
            "token_logprobs": [None if entry.logprob is None else number(entry.logprob) for entry in piece.entries],
            "top_logprobs": [self._top(entry) for entry in piece.entries],
            "text_offset": [entry.offset for entry in piece.entries],
        }

    def _top(self, entry: TokenEntry) -> dict[str, float] | None:
        """The likeliest tokens by their text, and the token itself in any case."""
        if entry.logprob is None:
            return None
        top: dict[str, float] = {}
        for token, logprob in [*top_of(entry), (entry.token, number(entry.logprob))]:
            top.setdefault(self.texts.text(token), logprob)
        return top


def _choice(index: int, text: str, logprobs: Json | None, finish: Finish | None) -> Json:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
