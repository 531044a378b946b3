"""Bodies of responses, messages, embeddings and tokens: taken, or refused with one error; what they mean for a chat."""

from __future__ import annotations

from typing import Any

import anthropic.types
import openai.types.chat
import openai.types.responses
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openai_api.errors import ApiError, from_validation
from openai_api.protocol.chat import ChatRequest
from openai_api.protocol.embeddings import EmbeddingRequest
from openai_api.protocol.messages import CountRequest, MessagesRequest
from openai_api.protocol.responses import ResponsesRequest
from openai_api.protocol.schemas import CompletionRequest, StrictModel, names
from openai_api.protocol.tokens import DetokenizeRequest, TokenizeRequest

RESPONSE: dict[str, Any] = {"model": "m", "input": "hi"}
MESSAGE: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[type[StrictModel], dict[str, Any]] = {
    ResponsesRequest: RESPONSE,
    MessagesRequest: MESSAGE,
    CountRequest: {name: value for name, value in MESSAGE.items() if name != "max_tokens"},
    EmbeddingRequest: {"model": "m", "input": "hi"},
    TokenizeRequest: {"model": "m", "prompt": "hi"},
    DetokenizeRequest: {"model": "m", "tokens": [1]},
}


def taken(kind: type[StrictModel], body: Any) -> Any:
    """The request as a chat where it is one. Raises: ApiError."""
    try:
        request = kind.model_validate(body)
    except pydantic.ValidationError as raised:
        errors = [{**error, "loc": ("body", *error["loc"])} for error in raised.errors()]
        raise from_validation(errors, names()) from raised
    match request:
        case ResponsesRequest() | CountRequest():
            return request.for_chat()
        case MessagesRequest():
            return request.as_chat()
        case _:
            return request


words = ["message", "function_call", "text", "tool_use", "tool_result", "user", "assistant", "auto", "any", "function"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(words),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(names())), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(list(BODIES)), st.dictionaries(st.sampled_from(sorted(names())), values, max_size=4))
def test_any_json_is_taken_or_refused_with_one_error(kind: type[StrictModel], change: dict[str, Any]) -> None:
    for body in (BODIES[kind] | change, change):
        try:
            taken(kind, body)
        except ApiError as error:
            assert error.status == 400
            assert error.message.isprintable()


@pytest.mark.parametrize(
    ("kind", "change", "param", "code"),
    [
        (ResponsesRequest, {"previous_response_id": "x"}, "previous_response_id", "unsupported_parameter"),
        (ResponsesRequest, {"input": []}, "input", "invalid_value"),
        (ResponsesRequest, {"input": [{"type": "reasoning"}]}, "input[0].type", "invalid_value"),
        (ResponsesRequest, {"input": [{"role": "user"}]}, "input[0].content", "invalid_combination"),
        (ResponsesRequest, {"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
        (ResponsesRequest, {"text": {"format": {"type": "json_schema"}}}, "text.format.name",
         "invalid_combination"),
        (ResponsesRequest, {"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        (ResponsesRequest, {"max_tokens": 5}, "max_tokens", "unknown_parameter"),
        (MessagesRequest, {"max_tokens": None}, "max_tokens", "invalid_type"),
        (MessagesRequest, {"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking", "unsupported_parameter"),
        (MessagesRequest, {"output_config": {"effort": "low"}}, "output_config.effort", "unsupported_parameter"),
        (MessagesRequest, {"tool_choice": {"type": "tool"}}, "tool_choice.name", "invalid_combination"),
        (MessagesRequest, {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
         "messages[0].content[0].type", "invalid_value"),
        (EmbeddingRequest, {"pooling": "cls"}, "pooling", "invalid_value"),
        (TokenizeRequest, {"messages": [{"role": "user", "content": "a"}]}, "prompt", "invalid_combination"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_its_place(kind: type[StrictModel], change: Any, param: str, code: str) -> None:
    with pytest.raises(ApiError) as raised:
        taken(kind, BODIES[kind] | change)
    assert (raised.value.param, raised.value.code) == (param, code)


def test_items_of_a_response_become_messages_of_a_chat() -> None:
    call = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c1",
        "name": "f",
        "arguments": "{}",
        "status": "completed",
    }
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        call,
        call | {"call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
    ]
    chat = taken(ResponsesRequest, RESPONSE | {"input": items, "instructions": "Hello.", "max_output_tokens": 7})
    messages = [message.for_template() for message in chat.messages]
    assert [message["role"] for message in messages] == ["system", "system", "user", "assistant", "tool", "tool"]
    assert messages[2]["content"] == "ab"
    assert [call["id"] for call in messages[3]["tool_calls"]] == ["c1", "c2"]
    assert [message["content"] for message in messages[4:]] == ["1", "2"]
    assert chat.limit == 7


def test_blocks_of_a_message_become_messages_of_a_chat() -> None:
    use = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "2"}]}
    body = MESSAGE | {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, use]},
            {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "stop_sequences": ["x"],
        "metadata": {"user_id": "somebody"},
    }
    chat = taken(MessagesRequest, body)
    messages = [message.for_template() for message in chat.messages]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "user"]
    assert messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert (messages[3]["content"], messages[4]["content"]) == ("2", "Well?")
    assert (chat.tool_choice, chat.parallel_tool_calls, chat.limit, chat.stops) == ("required", False, 5, ("x",))


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (ChatRequest, openai.types.chat.completion_create_params.CompletionCreateParamsBase),
        (CompletionRequest, openai.types.completion_create_params.CompletionCreateParamsBase),
        (ResponsesRequest, openai.types.responses.response_create_params.ResponseCreateParamsBase),
        (EmbeddingRequest, openai.types.EmbeddingCreateParams),
        (MessagesRequest, anthropic.types.message_create_params.MessageCreateParamsBase),
        (CountRequest, anthropic.types.MessageCountTokensParams),
    ],
)
def test_every_parameter_of_the_client_is_carried_out_or_refused_by_name(kind: type[StrictModel], known: Any) -> None:
    ours = {field.alias or name for name, field in kind.model_fields.items()} | set(kind.refused)
    assert set(known.__annotations__) - {"stream", "betas"} - ours == set()
