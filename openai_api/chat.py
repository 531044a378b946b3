"""`POST /v1/chat/completions`: the next message of a conversation. Everything here is pure."""

from __future__ import annotations

from dataclasses import dataclass

from openai_api.answer import Json, number, top_of
from openai_api.choice import Finish, Piece
from openai_api.vocabulary import TokenTexts


@dataclass(frozen=True)
class ChatForm:
    """`logprobs`: whether choices show log-probabilities."""

    texts: TokenTexts
    logprobs: bool
    whole_object: str = "chat.completion"
    chunk_object: str = "chat.completion.chunk"

    def opening(self, index: int) -> Json | None:
        return _delta(index, {"role": "assistant", "content": ""}, None, None)

    def chunk(self, index: int, piece: Piece) -> Json:
        return _delta(index, {"content": piece.text}, self._logprobs(piece), None)

    def closing(self, index: int, finish: Finish) -> Json:
        return _delta(index, {}, None, finish)

    def whole(self, index: int, piece: Piece) -> Json:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish,
        }

    def _logprobs(self, piece: Piece) -> Json | None:
        if not self.logprobs:
            return None
        content = []
        for entry in piece.entries:
            top = [self._token(token, logprob) for token, logprob in top_of(entry)]
            content.append({**self._token(entry.token, number(entry.logprob or 0.0)), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> Json:
        content = self.texts.content(token)
        return {
            "token": self.texts.text(token),
            "logprob": logprob,
            "bytes": None if content is None else list(content),
        }


def _delta(index: int, delta: Json, logprobs: Json | None, finish: Finish | None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
