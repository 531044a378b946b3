"""`POST /v1/chat/completions`: the next message of a conversation. Everything here is pure."""

from __future__ import annotations

from dataclasses import dataclass

from openai_api.generation.choice import ChoicePiece, Finish
from openai_api.generation.generation import Json, number, top_of
from openai_api.generation.token_texts import TokenTexts
from openai_api.generation.tool_parser import ToolCallDelta


@dataclass(frozen=True)
class ChatFormat:
    """`logprobs`: whether choices show log-probabilities."""

    texts: TokenTexts
    logprobs: bool
    whole_object: str = "chat.completion"
    chunk_object: str = "chat.completion.chunk"

    def opening(self, index: int) -> Json | None:
        return _delta(index, {"role": "assistant", "content": ""}, None, None)

    def chunk(self, index: int, piece: ChoicePiece) -> Json:
        delta: Json = {"content": piece.text} if piece.text or not piece.calls else {}
        if piece.calls:
            delta["tool_calls"] = [_call_delta(part) for part in piece.calls]
        return _delta(index, delta, self._logprobs(piece), None)

    def closing(self, index: int, finish: Finish) -> Json:
        return _delta(index, {}, None, finish)

    def whole(self, index: int, piece: ChoicePiece) -> Json:
        content = piece.text if piece.text or not piece.calls else None
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if piece.calls:
            message["tool_calls"] = [_call(part) for part in piece.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish,
        }

    def _logprobs(self, piece: ChoicePiece) -> Json | None:
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


def _call(part: ToolCallDelta) -> Json:
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.arguments}}


def _call_delta(part: ToolCallDelta) -> Json:
    if part.first:
        return {"index": part.index, **_call(part)}
    return {"index": part.index, "function": {"arguments": part.arguments}}


def _delta(index: int, delta: Json, logprobs: Json | None, finish: Finish | None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
