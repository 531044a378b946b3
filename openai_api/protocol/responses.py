"""Responses of OpenAI (https://platform.openai.com/docs/api-reference/responses): the body of a request, and an object
with items, or a stream of named, numbered events. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from openai_api.errors import ApiError, from_validation
from openai_api.generation.choice import ChoicePiece
from openai_api.generation.generation import Answer, Json, sse
from openai_api.generation.tool_parser import ToolCallDelta
from openai_api.protocol.chat import MAX_TOOLS, ChatRequest
from openai_api.protocol.schemas import NAME, JsonObject, StrictModel, Text, combination, names

Refused = Mapping[str, tuple[object, ...]]


class InputText(StrictModel):
    """A text of ours comes back as `output_text`, with fields that say nothing."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    parsed: Any = None  # what OpenAI's SDK has made of the text
    prompt_cache_breakpoint: JsonObject | None = None  # a hint that changes no answer


class Item(StrictModel):
    """A message, a function call, or its result."""

    refused: ClassVar[Refused] = {"async": (False,), "caller": ({"type": "direct"},), "namespace": ()}

    type: Literal["message", "function_call", "function_call_output"] = "message"
    id: Text | None = None
    status: Text | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Text | list[InputText] | None = None
    call_id: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    name: Text | None = None
    arguments: Text | None = None
    output: Text | list[InputText] | None = None
    phase: Text | None = None
    parsed_arguments: Any = None  # what OpenAI's SDK has made of them

    @model_validator(mode="after")
    def _combinations(self) -> Item:
        needed = {
            "message": ("role", "content"),
            "function_call": ("call_id", "name", "arguments"),
            "function_call_output": ("call_id", "output"),
        }[self.type]
        for name in needed:
            if getattr(self, name) is None:
                raise combination(name, f"it is needed in an item of the type '{self.type}'")
        return self


class ResponseFunction(StrictModel):
    """Response function in the body of a response's request."""

    refused: ClassVar[Refused] = {
        "allowed_callers": (["direct"],),
        "async": (False,),
        "defer_loading": (False,),
        "output_schema": (),
    }

    type: Literal["function"]
    name: Annotated[str, Field(pattern=NAME)]
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ChosenFunction(StrictModel):
    """Chosen function in the body of a response's request."""

    type: Literal["function"]
    name: Text


class TextFormat(StrictModel):
    """The formats of chat completions, with the schema one level higher."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    name: Annotated[str, Field(pattern=NAME)] | None = None
    description: Text | None = None
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    strict: bool | None = None
    pattern: Text | None = None
    grammar: Text | None = None

    @model_validator(mode="after")
    def _combinations(self) -> TextFormat:
        owners = {"name": "json_schema", "schema_": "json_schema", "pattern": "regex", "grammar": "grammar"}
        for field, kind in owners.items():
            given, name = getattr(self, field) is not None, field.rstrip("_")
            if kind == self.type and not given:
                raise combination(name, f"it is needed where the type is '{kind}'")
            if kind != self.type and given:
                raise combination(name, f"it is only allowed where the type is '{kind}'")
        return self


class TextOptions(StrictModel):
    """Text options in the body of a response's request."""

    refused: ClassVar[Refused] = {"verbosity": ("medium",)}

    format: TextFormat | None = None


class ResponseStreamOptions(StrictModel):
    """Response stream options in the body of a response's request."""

    refused: ClassVar[Refused] = {"include_obfuscation": (False,)}


class ResponsesRequest(StrictModel):
    """Body of `POST /v1/responses`."""

    refused: ClassVar[Refused] = {
        "access_programs": ([],),
        "background": (False,),
        "background_options": (),
        "context_management": ([],),
        "conversation": (),
        "image": (),
        "include": ([],),
        "max_tool_calls": (),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "prompt_cache_options": (),
        "reasoning": ({}, {"effort": None}, {"effort": "none"}),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    model: Annotated[Text, Field(min_length=1, max_length=256)]
    input: Text | Annotated[list[Item], Field(min_length=1)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    text: TextOptions | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenFunction | None = None
    tools: Annotated[list[ResponseFunction], Field(max_length=MAX_TOOLS)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None

    # Hints that change no answer.
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    user: str | None = None

    def for_chat(self) -> ChatRequest:
        """The same request to chat completions.

        Raises:
            ApiError: something does not fit together.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": self._messages(),
            "max_completion_tokens": self.max_output_tokens,
            "parallel_tool_calls": self.parallel_tool_calls,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "tools": [{"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in self.tools or ()],
            "tool_choice": self.tool_choice,
            "response_format": self._format(),
        }
        if isinstance(self.tool_choice, ChosenFunction):
            body["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
        return converted(body)

    def _format(self) -> dict[str, Any] | None:
        wanted = self.text.format if self.text else None
        if wanted is None:
            return None
        if wanted.type == "json_schema":
            schema = {"name": wanted.name, "schema": wanted.schema_, "strict": wanted.strict}
            return {"type": "json_schema", "json_schema": schema}
        return {"type": wanted.type, "pattern": wanted.pattern, "grammar": wanted.grammar}

    def _messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for item in self.input:
            match item.type:
                case "message":
                    messages.append({"role": item.role, "content": _joined(item.content)})
                case "function_call_output":
                    messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _joined(item.output)})
                case "function_call":
                    function = {"name": item.name, "arguments": item.arguments}
                    call = {"id": item.call_id, "type": "function", "function": function}
                    if messages and messages[-1]["role"] == "assistant":
                        messages[-1].setdefault("tool_calls", []).append(call)
                    else:
                        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        return messages


def converted(body: dict[str, Any]) -> ChatRequest:
    """A chat request out of what another API has checked already. Raises: ApiError."""
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise from_validation(found, names()) from error


def _joined(content: str | list[InputText] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


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
