"""What a body may hold: nothing that is asked for is ignored, and everything wrong is said by its name."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_api.errors import ApiError, from_validation
from openai_api.protocol.chat import ChatRequest
from openai_api.protocol.responses import ResponsesRequest
from openai_api.protocol.schemas import CompletionRequest, GenerationRequest, names

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "f"}}
DEEP: dict[str, Any] = {}
for _level in range(100):
    DEEP = {"items": DEEP}


def refused(kind: type[GenerationRequest], body: Any) -> ApiError:
    with pytest.raises(pydantic.ValidationError) as raised:
        kind.model_validate(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in raised.value.errors()]
    return from_validation(errors, names())


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (ChatRequest, "functions", [{"name": "f"}]),
        (ChatRequest, "audio", {"voice": "alloy", "format": "wav"}),
        (ChatRequest, "modalities", ["text", "audio"]),
        (ChatRequest, "prediction", {"type": "content", "content": "x"}),
        (ChatRequest, "reasoning_effort", "high"),
        (ChatRequest, "service_tier", "priority"),
        (ChatRequest, "store", True),
        (ChatRequest, "verbosity", "low"),
        (ChatRequest, "web_search_options", {}),
        (CompletionRequest, "suffix", "end"),
        (CompletionRequest, "best_of", 3),
    ],
)
def test_what_is_not_supported_is_refused_by_name(kind: type[GenerationRequest], field: str, value: object) -> None:
    error = refused(kind, (CHAT if kind is ChatRequest else COMPLETION) | {field: value})
    assert (error.status, error.param, error.code) == (400, field, "unsupported_parameter")
    assert f"'{field}'" in error.message


def test_what_asks_for_nothing_is_accepted() -> None:
    ChatRequest.model_validate(
        CHAT
        | {
            "tools": [],
            "tool_choice": "none",
            "parallel_tool_calls": True,
            "response_format": {"type": "text"},
            "modalities": ["text"],
            "store": False,
            "service_tier": "auto",
            "user": "somebody",
            "metadata": {"a": "b"},
            "safety_identifier": "x",
            "prompt_cache_key": "x",
        }
        | dict.fromkeys(["audio", "functions", "logit_bias", "stop", "n", "temperature", "stream_options", "seed"])
    )
    CompletionRequest.model_validate(COMPLETION | {"best_of": 2, "n": 2, "suffix": None})


def test_messages_are_taken_as_sdks_send_them_back() -> None:
    """An assistant's message out of a response, dumped whole, is full of nulls."""
    message = {"role": "assistant", "content": "hi", "refusal": None, "annotations": None, "audio": None}
    message |= {"function_call": None, "tool_calls": None}
    request = ChatRequest.model_validate(CHAT | {"messages": [*CHAT["messages"], message]})
    assert request.messages[1].for_template() == {"role": "assistant", "content": "hi"}


def test_what_an_sdk_has_read_into_an_answer_changes_nothing() -> None:
    """The openai package's `parse` keeps its reading in the message, and sends it back with the next turn."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"a": 1}}}
    message = {"role": "assistant", "content": "{}", "parsed": {"a": 1}, "tool_calls": [call]}
    read = ChatRequest.model_validate(CHAT | {"messages": [*CHAT["messages"], message]})
    del message["parsed"], call["function"]["parsed_arguments"]  # type: ignore[attr-defined]
    plain = ChatRequest.model_validate(CHAT | {"messages": [*CHAT["messages"], message]})
    assert read.messages[1].for_template() == plain.messages[1].for_template()
    text = {"type": "output_text", "text": "{}", "annotations": [], "parsed": {"a": 1}}
    answer = {"type": "message", "role": "assistant", "content": [text]}
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "parsed_arguments": {}}
    result = {"type": "function_call_output", "call_id": "c", "output": "1"}
    ResponsesRequest.model_validate({"model": "m", "input": [{"role": "user", "content": "hi"}, answer, item, result]})


def test_messages_reach_the_template_in_its_own_terms() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "Ann"}]
    request = ChatRequest.model_validate(CHAT | {"messages": messages})
    assert [message.for_template() for message in request.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab", "name": "Ann"},
    ]


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"frequency": 1}, "frequency", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": "a", "mood": "good"}]}, "messages[0].mood", "unknown_parameter"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_combination"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "function", "content": "5"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages[0].tool_call_id", "invalid_combination"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [TOOL, TOOL]}, "tools", "invalid_combination"),
        ({"tools": [TOOL], "tool_choice": NAMED | {"function": {"name": "g"}}}, "tool_choice", "invalid_combination"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_combination"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_combination"),
        ({"response_format": {"type": "regex"}}, "response_format.pattern", "invalid_combination"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": DEEP}}},
         "response_format.json_schema.schema", "invalid_value"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].id",
            "missing_required_parameter",
        ),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": float("nan")}, "temperature", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"n": 0}, "n", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"logit_bias": {"paris": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "invalid_combination"),
        ({"top_logprobs": 1}, "top_logprobs", "invalid_combination"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_combination"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "unsupported_parameter",
        ),
        ({"model": None}, "model", "invalid_type"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_its_place(change: dict[str, Any], param: str, code: str) -> None:
    error = refused(ChatRequest, CHAT | change)
    assert (error.status, error.param, error.code) == (400, param, code)
    assert param.rpartition(".")[2].partition("[")[0] in error.message


def test_an_unknown_field_is_refused_in_openais_words() -> None:
    assert refused(ChatRequest, CHAT | {"x": 1}).message == "Unrecognized request argument supplied: x"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("hi", ["hi"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([], []),
        ([[], [1]], [[], [1]]),
    ],
)
def test_prompts_come_in_four_forms(prompt: object, prompts: object) -> None:
    assert CompletionRequest.model_validate(COMPLETION | {"prompt": prompt}).prompts == prompts


@pytest.mark.parametrize("prompt", [5, [1, "a"], [[1], "a"], [-1], [1 << 31], [1.5], None, {"a": 1}, "\udc00"])
def test_other_prompts_are_refused(prompt: object) -> None:
    error = refused(CompletionRequest, COMPLETION | {"prompt": prompt})
    assert error.param is not None and error.param.startswith("prompt")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(sorted(names())) | st.text(max_size=5)


@given(
    st.sampled_from([ChatRequest, CompletionRequest]),
    st.dictionaries(field_names, json_values, max_size=4) | json_values,
)
def test_any_json_is_taken_or_refused_with_one_error(kind: type[GenerationRequest], body: Any) -> None:
    if isinstance(body, dict):
        body = (CHAT if kind is ChatRequest else COMPLETION) | body
    try:
        kind.model_validate(body)
    except pydantic.ValidationError as raised:
        errors = [{**error, "loc": ("body", *error["loc"])} for error in raised.errors()]
        error = from_validation(errors, names())
        assert error.status == 400
        assert error.message.isprintable()
        assert set(error.body()["error"]) == {"message", "type", "param", "code"}
