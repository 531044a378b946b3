"""Messages of Anthropic: the body of a request, and an object with content blocks, or a stream of named events; and its
errors. Everything here is pure. Source: https://docs.anthropic.com/en/api/messages-streaming.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from openai_api.errors import ApiError
from openai_api.generation.choice import ChoicePiece
from openai_api.generation.generation import Answer, Json, sse
from openai_api.generation.tool_parser import ToolCallDelta
from openai_api.protocol.chat import MAX_TOOLS, ChatRequest
from openai_api.protocol.responses import converted
from openai_api.protocol.schemas import MAX_STOP_LENGTH, MAX_STOPS, NAME, JsonObject, StrictModel, Text, combination

Refused = Mapping[str, tuple[object, ...]]
StopSequence = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


class CacheControl(StrictModel):
    """A hint that changes no answer."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class TextBlock(StrictModel):
    """Text block in the body of Anthropic's messages."""

    refused: ClassVar[Refused] = {"citations": ([],)}

    type: Literal["text"]
    text: Text
    cache_control: CacheControl | None = None


class Block(StrictModel):
    """A text, a call of a tool, or its result."""

    refused: ClassVar[Refused] = {"citations": ([],), "caller": ({"type": "direct"},), "toolset_name": ()}

    type: Literal["text", "tool_use", "tool_result"]
    text: Text | None = None
    id: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    name: Text | None = None
    input: JsonObject | None = None
    tool_use_id: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    content: Text | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None

    @model_validator(mode="after")
    def _combinations(self) -> Block:
        needed = {"text": ("text",), "tool_use": ("id", "name", "input"), "tool_result": ("tool_use_id",)}[self.type]
        for name in needed:
            if getattr(self, name) is None:
                raise combination(name, f"it is needed in a block of the type '{self.type}'")
        return self


class InputMessage(StrictModel):
    """Input message in the body of Anthropic's messages."""

    role: Literal["user", "assistant"]
    content: Text | list[Block]

    def for_chat(self) -> list[dict[str, Any]]:
        """The same as messages of a chat: results of tools are messages of their own there."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        text = "".join(block.text or "" for block in self.content if block.type == "text")
        results = [
            {"role": "tool", "tool_call_id": block.tool_use_id, "content": _joined(block.content)}
            for block in self.content
            if block.type == "tool_result"
        ]
        calls = [
            {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": json.dumps(block.input)}}
            for block in self.content
            if block.type == "tool_use"
        ]
        if calls:
            return [*results, {"role": self.role, "content": text or None, "tool_calls": calls}]
        return [*results, {"role": self.role, "content": text}] if text or not results else results


class MessageTool(StrictModel):
    """Message tool in the body of Anthropic's messages."""

    refused: ClassVar[Refused] = {"defer_loading": (False,), "allowed_callers": (["direct"],), "input_examples": ([],)}

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=NAME)]
    description: Text | None = None
    input_schema: JsonObject
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    cache_control: CacheControl | None = None


class MessageToolChoice(StrictModel):
    """Message tool choice in the body of Anthropic's messages."""

    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _combinations(self) -> MessageToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise combination("name", "it is needed where the type is 'tool', and only there")
        return self


class MessageMetadata(StrictModel):
    """Message metadata in the body of Anthropic's messages."""

    user_id: str | None = None


class OutputFormat(StrictModel):
    """Output format in the body of Anthropic's messages."""

    type: Literal["json_schema"]
    schema_: Annotated[JsonObject, Field(alias="schema")]


class OutputConfig(StrictModel):
    """Output config in the body of Anthropic's messages."""

    refused: ClassVar[Refused] = {"effort": (), "task_budget": ()}

    format: OutputFormat | None = None


class MessagesBody(StrictModel):
    """Body that both requests of Anthropic's messages share."""

    refused: ClassVar[Refused] = {
        "container": (),
        "context_management": (),
        "diagnostics": (),
        "inference_geo": (),
        "mcp_servers": ([],),
        "output_format": (),
        "service_tier": ("auto", "standard_only"),
        "speed": ("standard",),
        "thinking": ({"type": "disabled"},),
        "user_profile_id": (),
        "workspace_id": (),
    }

    model: Annotated[Text, Field(min_length=1, max_length=256)]
    messages: Annotated[list[InputMessage], Field(min_length=1)]
    system: Text | list[TextBlock] | None = None
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: MessageToolChoice | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None

    def for_chat(self, **more: Any) -> ChatRequest:
        """The same request to chat completions, with further fields. Raises: ApiError: something does not fit."""
        messages = [part for message in self.messages for part in message.for_chat()]
        if system := _joined(self.system):
            messages.insert(0, {"role": "system", "content": system})
        body: dict[str, Any] = {"model": self.model, "messages": messages, **more}
        if self.output_config and self.output_config.format:
            schema = {"name": "output", "schema": self.output_config.format.schema_, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": tool.input_schema,
                        "strict": tool.strict,
                    },
                }
                for tool in self.tools
            ]
        if choice := self.tool_choice:
            named = {"type": "function", "function": {"name": choice.name}}
            body["tool_choice"] = {"any": "required", "tool": named}.get(choice.type, choice.type)
            body["parallel_tool_calls"] = not choice.disable_parallel_tool_use
        return converted(body)


class CountRequest(MessagesBody):
    """Body of `POST /v1/messages/count_tokens`."""


class MessagesRequest(MessagesBody):
    """Body of `POST /v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)]
    metadata: MessageMetadata | None = None
    stop_sequences: Annotated[list[StopSequence], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None

    def as_chat(self) -> ChatRequest:
        return self.for_chat(
            max_tokens=self.max_tokens,
            stop=self.stop_sequences,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )


def _joined(content: str | list[TextBlock] | None) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content or ())


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
