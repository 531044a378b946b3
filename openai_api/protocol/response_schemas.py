"""The body of `POST /v1/responses`, without state: nothing is stored, so nothing can be referred to by its id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from openai_api.errors import from_validation
from openai_api.protocol.chat_schemas import MAX_TOOLS, ChatRequest
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
    refused: ClassVar[Refused] = {"verbosity": ("medium",)}

    format: TextFormat | None = None


class ResponseStreamOptions(StrictModel):
    refused: ClassVar[Refused] = {"include_obfuscation": (False,)}


class ResponsesRequest(StrictModel):
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
