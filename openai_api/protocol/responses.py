"""How OpenAI's responses are written (https://platform.openai.com/docs/api-reference/responses): an object with items,
or a stream of named, numbered events. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from openai_api.errors import ApiError
from openai_api.generation.choice import ChoicePiece
from openai_api.generation.generation import Answer, Json, sse
from openai_api.generation.tool_parser import ToolCallDelta
from openai_api.protocol.response_schemas import ResponsesRequest


@dataclass
class ResponseOutput:
    """The `Output` of one request."""

    request: ResponsesRequest
    _events: ResponseEvents | None = None

    def body(self, answer: Answer, pieces: Sequence[ChoicePiece], used: int) -> Json:
        (piece,) = pieces
        items = [_message(answer, 0, piece.text, "completed")] if piece.text or not piece.calls else []
        items += [_call(answer, part, part.arguments, "completed") for part in piece.calls]
        return self.response(answer, piece.finish, items, used)

    def stream(self, answer: Answer) -> ResponseEvents:
        self._events = ResponseEvents(self, answer)
        return self._events

    def failure(self, problem: ApiError) -> bytes:
        number = self._events.number if self._events else 0
        error = {"code": problem.code, "message": problem.message, "param": problem.param}
        return sse({"type": "error", "sequence_number": number, **error}, "error")

    def response(self, answer: Answer, finish: str, items: list[Json], used: int | None) -> Json:
        """The object `response`; `used`: tokens that were generated; None: it is not complete."""
        request = self.request
        status = "in_progress" if used is None else "incomplete" if finish == "length" else "completed"
        usage = None
        if used is not None:
            usage = {
                "input_tokens": answer.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": used,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answer.prompt_tokens + used,
            }
        return {
            "id": answer.id,
            "object": "response",
            "created_at": answer.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": answer.model,
            "output": items,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": self._format()},
            "tool_choice": _dumped(request.tool_choice) or "auto",
            "tools": [_tool(_dumped(tool)) for tool in request.tools or ()],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": usage,
            "user": request.user,
        }

    def _format(self) -> Json:
        wanted = self.request.text.format if self.request.text else None
        return wanted.model_dump(by_alias=True, exclude_none=True) if wanted else {"type": "text"}


class ResponseEvents:
    """The `Stream` of a response."""

    def __init__(self, output: ResponseOutput, answer: Answer) -> None:
        self._output = output
        self._answer = answer
        self.number = 0
        self._items: list[Json] = []  # those that are complete
        self._text: str | None = None  # of the message that is open
        self._call: tuple[ToolCallDelta, str] | None = None  # the call that is open, and its arguments
        self._finish = ""

    def piece(self, index: int, piece: ChoicePiece) -> Iterator[bytes]:
        if not self.number:
            begun = self._output.response(self._answer, "", [], None)
            yield self._event("response.created", response=begun)
            yield self._event("response.in_progress", response=begun)
        if piece.text:
            yield from self._close_call()
            yield from self._open_message()
            self._text = (self._text or "") + piece.text
            yield self._text_event("response.output_text.delta", delta=piece.text, logprobs=[])
        for part in piece.calls:
            if part.first:
                yield from self._close_message()
                yield from self._close_call()
                self._call = (part, "")
                item = _call(self._answer, part, "", "in_progress")
                yield self._event("response.output_item.added", output_index=len(self._items), item=item)
            if self._call is not None and part.arguments:
                self._call = (self._call[0], self._call[1] + part.arguments)
                yield self._call_event("response.function_call_arguments.delta", delta=part.arguments)
        self._finish = piece.finish or self._finish

    def end(self, used: int) -> Iterator[bytes]:
        if not self._items and self._call is None:
            yield from self._open_message()
        yield from self._close_message()
        yield from self._close_call()
        response = self._output.response(self._answer, self._finish, self._items, used)
        yield self._event(f"response.{response['status']}", response=response)

    def _open_message(self) -> Iterator[bytes]:
        if self._text is not None:
            return
        self._text = ""
        item = _message(self._answer, len(self._items), "", "in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=len(self._items), item=item)
        yield self._text_event("response.content_part.added", part=_part(""))

    def _close_message(self) -> Iterator[bytes]:
        if self._text is None:
            return
        text, place = self._text, len(self._items)
        item = _message(self._answer, place, text, "completed")
        yield self._text_event("response.output_text.done", text=text, logprobs=[])
        yield self._text_event("response.content_part.done", part=_part(text))
        self._items.append(item)
        self._text = None
        yield self._event("response.output_item.done", output_index=place, item=item)

    def _close_call(self) -> Iterator[bytes]:
        if self._call is None:
            return
        part, arguments = self._call
        item, place = _call(self._answer, part, arguments, "completed"), len(self._items)
        yield self._call_event("response.function_call_arguments.done", arguments=arguments, name=part.name)
        self._items.append(item)
        self._call = None
        yield self._event("response.output_item.done", output_index=place, item=item)

    def _text_event(self, kind: str, **fields: Any) -> bytes:
        item = _message_id(self._answer, len(self._items))
        return self._event(kind, item_id=item, output_index=len(self._items), content_index=0, **fields)

    def _call_event(self, kind: str, **fields: Any) -> bytes:
        assert self._call is not None
        item = _item_id(self._answer, self._call[0])
        return self._event(kind, item_id=item, output_index=len(self._items), **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = sse({"type": kind, "sequence_number": self.number, **fields}, kind)
        self.number += 1
        return event


def _message_id(answer: Answer, place: int) -> str:
    return f"msg_{answer.id.removeprefix('resp_')}_{place}"


def _message(answer: Answer, place: int, text: str, status: str) -> Json:
    return {
        "id": _message_id(answer, place),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [_part(text)],
    }


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(answer: Answer, part: ToolCallDelta, arguments: str, status: str) -> Json:
    return {
        "id": _item_id(answer, part),
        "type": "function_call",
        "status": status,
        "call_id": part.id,
        "name": part.name,
        "arguments": arguments,
    }


def _item_id(answer: Answer, part: ToolCallDelta) -> str:
    return f"fc_{answer.id.removeprefix('resp_')}_{part.index}"


def _tool(tool: Json) -> Json:
    return {"parameters": None, "strict": False, **tool}


def _dumped(value: Any) -> Any:
    return value.model_dump(by_alias=True, exclude_none=True) if hasattr(value, "model_dump") else value
