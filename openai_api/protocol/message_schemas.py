"""The bodies of Anthropic's `POST /v1/messages` and `/v1/messages/count_tokens`
(https://docs.anthropic.com/en/api/messages).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from openai_api.protocol.chat_schemas import MAX_TOOLS, ChatRequest
from openai_api.protocol.response_schemas import converted
from openai_api.protocol.schemas import MAX_STOP_LENGTH, MAX_STOPS, NAME, JsonObject, StrictModel, Text, combination

Refused = Mapping[str, tuple[object, ...]]
StopSequence = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


class CacheControl(StrictModel):
    """A hint that changes no answer."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class TextBlock(StrictModel):
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
    refused: ClassVar[Refused] = {"defer_loading": (False,), "allowed_callers": (["direct"],), "input_examples": ([],)}

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=NAME)]
    description: Text | None = None
    input_schema: JsonObject
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    cache_control: CacheControl | None = None


class MessageToolChoice(StrictModel):
    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _combinations(self) -> MessageToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise combination("name", "it is needed where the type is 'tool', and only there")
        return self


class MessageMetadata(StrictModel):
    user_id: str | None = None


class OutputFormat(StrictModel):
    type: Literal["json_schema"]
    schema_: Annotated[JsonObject, Field(alias="schema")]


class OutputConfig(StrictModel):
    refused: ClassVar[Refused] = {"effort": (), "task_budget": ()}

    format: OutputFormat | None = None


class MessagesBody(StrictModel):
    """What both requests have in common."""

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
    pass


class MessagesRequest(MessagesBody):
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
