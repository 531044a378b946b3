"""The bodies of requests, as OpenAI defines them, with what vLLM adds (`top_k`, `min_p` and others).

Nothing that a caller asks for is ignored. A field is either carried out, or inert (it changes no answer: `user`), or
refused by name unless its value asks for nothing (`tools: []`). Unknown fields are refused too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_CHOICES = 128
MAX_STOPS = 4
MAX_STOP_LENGTH = 1024  # characters
MAX_LOGPROBS = 20
MAX_BIASES = 4096
MAX_DEPTH = 64  # levels of a JSON schema
MAX_PATTERN = 1 << 15  # characters
NAME = r"^[a-zA-Z0-9_-]{1,64}$"  # of a function or a schema


def _text(value: str) -> str:
    """JSON can spell halves of characters, which no text in UTF-8 can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("text", "half of a surrogate pair is no text", {}) from error
    return value


Text = Annotated[str, AfterValidator(_text)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


def combination(param: str, why: str) -> PydanticCustomError:
    """A field that is fine by itself, but not beside the others."""
    return PydanticCustomError("combination", "{param}: {why}", {"param": param, "why": why})


def refusal(name: str, why: str = "") -> PydanticCustomError:
    """A field that is known and not supported."""
    return PydanticCustomError("unsupported_parameter", "{name} is not supported", {"name": name, "why": why})


class StrictModel(BaseModel):
    """Base of everything that lies in a body.

    Attributes:
        refused: fields that are known and not supported, with the values (beside null) that ask for nothing.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        for name, value in data.items():
            if name in cls.refused and value is not None and value not in cls.refused[name]:
                raise refusal(name)
        return {name: value for name, value in data.items() if name not in cls.refused}


def _stops(value: str | list[str]) -> str | list[str]:
    stops = [value] if isinstance(value, str) else value
    if len(stops) > MAX_STOPS:
        raise PydanticCustomError("too_many", "at most {most} stop strings are allowed", {"most": MAX_STOPS})
    if not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
        raise PydanticCustomError("stop_length", "a stop string has 1 to {most} characters", {"most": MAX_STOP_LENGTH})
    return value


def _biases(value: dict[str, float]) -> dict[str, float]:
    if len(value) > MAX_BIASES:
        raise PydanticCustomError("too_many", "at most {most} tokens can have a bias", {"most": MAX_BIASES})
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and int(token) < 1 << 31):
            raise PydanticCustomError("bias", "'{token}' is no token id", {"token": token})
        if not -100 <= bias <= 100:
            raise PydanticCustomError("bias", "a bias lies between -100 and 100", {})
    return value


def _object(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema, or something else that others will read again."""
    depth = 0
    level: list[Any] = [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise PydanticCustomError("too_deep", "at most {most} levels are allowed", {"most": MAX_DEPTH})
        inner = [list(each.values()) if isinstance(each, dict) else each for each in level]
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
    _text(json.dumps(value, ensure_ascii=False))
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_object)]


class JsonSchema(StrictModel):
    """JSON schema of a response format."""

    name: Annotated[str, Field(pattern=NAME)]
    description: Text | None = None
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """OpenAI's three, and two of our own: `regex` with `pattern`, `grammar` with `grammar` in llguidance's Lark."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    pattern: Annotated[Text, Field(max_length=MAX_PATTERN)] | None = None
    grammar: Annotated[Text, Field(max_length=MAX_PATTERN)] | None = None

    @model_validator(mode="after")
    def _combinations(self) -> ResponseFormat:
        given = {"json_schema": self.json_schema, "regex": self.pattern, "grammar": self.grammar}
        for kind, value in given.items():
            name = "pattern" if kind == "regex" else kind
            if kind == self.type and value is None:
                raise combination(name, f"it is needed where the type is '{kind}'")
            if kind != self.type and value is not None:
                raise combination(name, f"it is only allowed where the type is '{kind}'")
        return self


class StreamOptions(StrictModel):
    """Options of a stream."""

    refused = {"include_obfuscation": (False,)}

    include_usage: bool | None = None


class GenerationRequest(StrictModel):
    """Generation request: what completions and chat completions share."""

    model: Annotated[Text, Field(min_length=1, max_length=256)]
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, float], AfterValidator(_biases)] | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: Annotated[str | list[str], AfterValidator(_stops)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    response_format: ResponseFormat | None = None

    # Inert: nothing is stored or billed.
    metadata: dict[str, str] | None = None
    user: str | None = None

    # vLLM's.
    ignore_eos: bool | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    return_token_ids: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def alternatives(self) -> int:
        """How many of the likeliest tokens to report beside each token; -1: no log-probabilities at all."""
        raise TypeError(f"{type(self).__name__} does not say how it asks for log-probabilities")

    @model_validator(mode="after")
    def _stream_options(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise combination("stream_options", "it is only allowed when 'stream' is true")
        return self


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`."""

    refused = {
        "suffix": ("",),
        "store": (False,),
        "service_tier": ("auto", "default"),
    }

    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def alternatives(self) -> int:
        return -1 if self.logprobs is None else self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one: each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(part, int) for part in self.prompt):
            return [[part for part in self.prompt if isinstance(part, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]

    @model_validator(mode="after")
    def _combinations(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.choices:
            raise refusal("best_of", "ask for 'n' choices and choose among them")
        return self


class Problem(BaseModel):
    """Problem: what is wrong, as `openai_api.errors` makes it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: Problem


class MessagesProblem(BaseModel):
    """Error as Anthropic's API writes it."""

    type: str
    message: str


class MessagesErrorBody(BaseModel):
    """The same where Anthropic's API is spoken."""

    type: Literal["error"]
    error: MessagesProblem
    request_id: str | None = None


def names() -> frozenset[str]:
    """Every name that may stand in the location of a validation error: of all bodies that were defined so far."""
    found: set[str] = set()
    left: list[type[StrictModel]] = [StrictModel]
    while left:
        schema = left.pop()
        left += schema.__subclasses__()
        found.update(schema.model_fields, schema.refused)
        found.update(field.alias for field in schema.model_fields.values() if field.alias)
    return frozenset(found)
