"""How Anthropic's messages are written: an object with content blocks, or a stream of named events; and its errors.
Everything here is pure. Source: https://docs.anthropic.com/en/api/messages-streaming.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from openai_api.errors import ApiError
from openai_api.generation.choice import ChoicePiece
from openai_api.generation.generation import Answer, Json, sse
from openai_api.generation.tool_parser import ToolCallDelta

PATH = "/v1/messages"  # what lies there answers with Anthropic's errors
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class MessageOutput:
    """The `Output` of messages."""

    def body(self, answer: Answer, pieces: Sequence[ChoicePiece], used: int) -> Json:
        (piece,) = pieces
        content: list[Json] = [{"type": "text", "text": piece.text}] if piece.text else []
        content += [_tool_use(part, _arguments(part.arguments)) for part in piece.calls]
        return _message(answer, content, _reason(piece), piece.stop or None, used)

    def stream(self, answer: Answer) -> MessageEvents:
        return MessageEvents(answer)

    def failure(self, problem: ApiError) -> bytes:
        return sse(error_body(problem), "error")


class MessageEvents:
    """The `Stream` of a message."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._begun = False
        self._block = ""  # the type of the block that is open
        self._place = 0
        self._last = ChoicePiece()

    def piece(self, index: int, piece: ChoicePiece) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            yield _event("message_start", message=_message(self._answer, [], None, None, 0))
        if piece.text:
            if self._block != "text":
                yield from self._open({"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": piece.text})
        for part in piece.calls:
            if part.first:
                yield from self._open(_tool_use(part, {}))
            if part.arguments:
                yield self._delta({"type": "input_json_delta", "partial_json": part.arguments})
        self._last = piece

    def end(self, used: int) -> Iterator[bytes]:
        yield from self._close()
        delta = {"stop_reason": _reason(self._last), "stop_sequence": self._last.stop or None}
        yield _event("message_delta", delta=delta, usage={"output_tokens": used})
        yield _event("message_stop")

    def _open(self, block: Json) -> Iterator[bytes]:
        yield from self._close()
        self._block = block["type"]
        yield _event("content_block_start", index=self._place, content_block=block)

    def _delta(self, delta: Json) -> bytes:
        return _event("content_block_delta", index=self._place, delta=delta)

    def _close(self) -> Iterator[bytes]:
        if self._block:
            yield _event("content_block_stop", index=self._place)
            self._block = ""
            self._place += 1


def error_body(problem: ApiError, request_id: str = "") -> Json:
    """An error as Anthropic's clients expect it."""
    kind = _KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "api_error")
    body: Json = {"type": "error", "error": {"type": kind, "message": problem.message}}
    return body | {"request_id": request_id} if request_id else body


def body_of(problem: ApiError, path: str, request_id: str) -> Json:
    """An error as the clients of what lies at `path` expect it."""
    if path == PATH or path.startswith(f"{PATH}/"):
        return error_body(problem, request_id)
    return problem.body()


def _message(answer: Answer, content: list[Json], reason: str | None, stop: str | None, used: int) -> Json:
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": stop,
        "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": used},
    }


def _reason(piece: ChoicePiece) -> str:
    if piece.stop:
        return "stop_sequence"
    return {"length": "max_tokens", "tool_calls": "tool_use"}.get(piece.finish, "end_turn")


def _tool_use(part: ToolCallDelta, arguments: Json) -> Json:
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments}


def _arguments(text: str) -> Json:
    """What the answer's end has cut off is left out."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _event(kind: str, **fields: object) -> bytes:
    return sse({"type": kind, **fields}, kind)
