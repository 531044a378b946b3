"""OpenAPI document: what answers look like, for the OpenAPI document. The tests hold what the code makes against it."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel

from openai_api.protocol.schemas import ErrorBody, MessagesErrorBody

Documented = dict[int | str, dict[str, Any]]

STATUSES = {
    400: "Something is wrong with the request, or asks for what is not supported",
    401: "The API key is missing, unknown, expired or revoked",
    403: "The API key may not do this; without one, only requests addressed to this machine are answered",
    404: "There is no such model or path",
    413: "The body is too large",
    429: "The gateway or the servers have no room, or the key's limit is reached; 'Retry-After' says when to come back",
    500: "The gateway failed; its log says more",
    502: "The swarm could not compute the answer",
    503: "No server holds some blocks of the model, or the gateway shuts down",
}

REQUEST_ID = {"description": "The log names the request so", "required": True, "schema": {"type": "string"}}
RETRY_AFTER = {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}}
# Of answers with some statuses, beside X-Request-Id, which all have.
HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    429: {"Retry-After": {**RETRY_AFTER, "required": True}},
    503: {"Retry-After": RETRY_AFTER},
}

# How a gateway with an API key is to be shown it: the one way or the other.
KEYED = (
    Security(HTTPBearer(auto_error=False, description="OpenAI's way")),
    Security(APIKeyHeader(name="X-Api-Key", auto_error=False, description="Anthropic's way")),
)


class ServerSpan(BaseModel):
    """Span that a server computes."""

    server: str
    blocks: str
    state: str


class ModelObject(BaseModel):
    """Answer to `GET /v1/models/{model}`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    status: Literal["ready", "incomplete", "available"]
    complete: bool
    context_length: int | None = None
    max_model_len: int | None = None
    blocks: int | None = None
    missing: list[str] | None = None
    spans: list[ServerSpan] | None = None
    repo: str | None = None
    size: int | None = None
    licence: str | None = None
    gated: bool | None = None


class ModelList(BaseModel):
    """Answer to `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelObject]


class Usage(BaseModel):
    """Tokens of the prompt and the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """Likely token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """Token of an answer with its log-probability."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message's tokens."""

    content: list[TokenLogprob]
    refusal: None


class CallFunction(BaseModel):
    """Function that a call names, with its arguments."""

    name: str
    arguments: str


class ToolCallObject(BaseModel):
    """Call of a function."""

    id: str
    type: Literal["function"]
    function: CallFunction


class AnswerMessage(BaseModel):
    """Message of the assistant, as it is answered."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCallObject] | None = None


class ChatChoice(BaseModel):
    """Choice of a chat completion."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] | None = None


class ChatCompletion(BaseModel):
    """Answer to `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion's tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """Choice of a completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] | None = None


class Completion(BaseModel):
    """Answer to `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class OutputText(BaseModel):
    """Text of a response's message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputItem(BaseModel):
    """Item of a response: a message or a call."""

    id: str
    type: Literal["message", "function_call"]
    status: str
    role: str | None = None
    content: list[OutputText] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class ResponseObject(BaseModel):
    """Answer to `POST /v1/responses`."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[OutputItem]
    usage: dict[str, Any]
    incomplete_details: dict[str, str] | None


class EmbeddingObject(BaseModel):
    """Embedding of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class PromptUsage(BaseModel):
    """Tokens of the inputs of embeddings."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """Answer to `POST /v1/embeddings`."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    usage: PromptUsage


class ContentBlock(BaseModel):
    """Content block of Anthropic's messages: a text or a call."""

    type: Literal["text", "tool_use"]
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class MessageUsage(BaseModel):
    """Tokens of a message's prompt and answer."""

    input_tokens: int
    output_tokens: int


class MessageObject(BaseModel):
    """Answer to `POST /v1/messages`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    """Answer to `POST /v1/messages/count_tokens`."""

    input_tokens: int


class Tokens(BaseModel):
    """Answer to `POST /tokenize`."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """Answer to `POST /detokenize`."""

    prompt: str


class TokenizerInfo(BaseModel):
    """Answer to `GET /tokenizer_info`."""

    model: str
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None


class Coverage(BaseModel):
    """Coverage of a model: blocks that no ready server holds."""

    id: str
    complete: bool
    blocks: int
    missing: list[str]
    servers: int


class Health(BaseModel):
    """Answer to `GET /health`."""

    status: Literal["ok"]
    complete: bool | None = None
    models: list[Coverage] | None = None


def answers(model: type[BaseModel], streamed: bool = False) -> Documented:
    """Status 200 of a route; `streamed`: it may be a stream of events instead."""
    found: dict[str, Any] = {"model": model, "headers": _headers()}
    if streamed:
        # No schema: some readers hold one against each event, others against the text of them all.
        found["content"] = {"text/event-stream": {}}
    return {200: found}


def errors(model: type[BaseModel] = ErrorBody) -> Documented:
    """Every status that is an error. The ranges stand for what a proxy may add, and leave no room for FastAPI's 422."""
    known: Documented = {
        status: {"model": model, "description": text, "headers": _headers(status)} for status, text in STATUSES.items()
    }
    return {**known, "4XX": {"model": model}, "5XX": {"model": model}}


def _headers(status: int = 200) -> dict[str, Any]:
    return {"X-Request-Id": REQUEST_ID, **HEADERS.get(status, {})}


MESSAGES_ERRORS = errors(MessagesErrorBody)
