"""Chat completions of OpenAI: the body of a request, and the next message of a conversation as it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from openai_api.generation.choice import ChoicePiece, Finish
from openai_api.generation.generation import Json, number, top_of
from openai_api.generation.token_texts import TokenTexts
from openai_api.generation.tool_parser import ToolCallDelta
from openai_api.protocol.schemas import (
    MAX_LOGPROBS,
    NAME,
    GenerationRequest,
    JsonObject,
    StrictModel,
    Text,
    combination,
)

MAX_TOOLS = 128


class TextPart(StrictModel):
    """Text part in the body of a chat completion."""

    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: JsonObject | None = None  # a hint that changes no answer


class Function(StrictModel):
    """Function in the body of a chat completion."""

    name: Annotated[str, Field(pattern=NAME)]
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        return {"type": "object", **(self.parameters or {"properties": {}})}


class Tool(StrictModel):
    """Tool in the body of a chat completion."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """As chat templates know tools: without what only OpenAI knows."""
        function = {"name": self.function.name, "description": self.function.description or ""}
        return {"type": "function", "function": {**function, "parameters": self.function.schema_of_arguments}}


class FunctionName(StrictModel):
    """Function name in the body of a chat completion."""

    name: Text


class NamedTool(StrictModel):
    """Named tool in the body of a chat completion."""

    type: Literal["function"]
    function: FunctionName


class CalledFunction(StrictModel):
    """Called function in the body of a chat completion."""

    name: Text
    arguments: Text
    parsed_arguments: Any = None  # what OpenAI's SDK has made of them; it sends it back with the rest


class ToolCall(StrictModel):
    """Tool call in the body of a chat completion."""

    id: Annotated[Text, Field(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # some clients send the deltas of a stream back

    def for_template(self) -> dict[str, Any]:
        """As chat templates know calls: with the arguments as an object."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = self.function.arguments
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class ChatMessage(StrictModel):
    """Chat message in the body of a chat completion."""

    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "reasoning_content": ("",),
        "refusal": (),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[Text, Field(max_length=256)] | None = None
    parsed: Any = None  # what OpenAI's SDK has made of the content

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())

    def for_template(self) -> dict[str, Any]:
        """As chat templates know messages: their system role is what OpenAI now calls developer."""
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        if self.name:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message

    @model_validator(mode="after")
    def _combinations(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise combination("content", "only a message with 'tool_calls' has none")
        if self.tool_calls and self.role != "assistant":
            raise combination("tool_calls", "only a message of the role 'assistant' has them")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise combination("tool_call_id", "a message of the role 'tool' has it, and no other one")
        return self


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "prompt_cache_options": (),
        "reasoning_effort": ("none",),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "verbosity": (),
        "web_search_options": (),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    logprobs: bool | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    max_tokens: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    # Hints that change no answer.
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None

    @property
    def alternatives(self) -> int:
        return (self.top_logprobs or 0) if self.logprobs else -1

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @model_validator(mode="after")
    def _combinations(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise combination("max_tokens", "it cannot be set beside 'max_completion_tokens'")
        if self.top_logprobs is not None and not self.logprobs:
            raise combination("top_logprobs", "it is only allowed when 'logprobs' is true")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise combination("tools", "two functions have the same name")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise combination("tool_choice", "it is only allowed when there are 'tools'")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise combination("tool_choice", f"there is no function '{self.tool_choice.function.name}' among the tools")
        return self


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
