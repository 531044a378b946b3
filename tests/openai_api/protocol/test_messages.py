"""Anthropic's `/v1/messages` as its own client sees it: real HTTP, a real model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from swarm import SessionFailed
from tests.openai_api.engine import MODEL, WholeModel

anthropic = pytest.importorskip("anthropic")

pytestmark = pytest.mark.model
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
TOOL: Any = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ASKED: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 60, "extra_body": {"temperature": 0}}
CALLED: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "get_weather"}}


@pytest.fixture
def claude(url: str, engine: WholeModel) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_a_question_is_answered(claude: Any) -> None:
    answer = claude.messages.create(**ASKED)
    assert [block.text for block in answer.content] == [ANSWER]
    assert (answer.role, answer.type, answer.stop_reason, answer.stop_sequence) == (
        "assistant",
        "message",
        "end_turn",
        None,
    )
    assert answer.usage.output_tokens == 8
    counted = claude.messages.count_tokens(model=MODEL, messages=QUESTION)
    assert counted.input_tokens == answer.usage.input_tokens
    longer = claude.messages.count_tokens(model=MODEL, messages=QUESTION, system="Be brief.", tools=[TOOL])
    assert longer.input_tokens > counted.input_tokens


def test_a_stream_says_the_same_piece_by_piece(claude: Any) -> None:
    with claude.messages.stream(**ASKED) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == ANSWER and len(texts) > 5
    assert final.content[0].text == ANSWER
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 8)
    events = [event.type for event in claude.messages.create(**ASKED, stream=True)]
    assert events[:2] == ["message_start", "content_block_start"]
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_why_an_answer_ended_is_said(claude: Any) -> None:
    cut = claude.messages.create(**ASKED | {"max_tokens": 2})
    assert cut.stop_reason == "max_tokens"
    stopped = claude.messages.create(**ASKED, stop_sequences=["is P", " of Fr"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " of Fr")
    assert stopped.content[0].text == "The capital"


def test_a_tool_is_used_and_its_result_is_read(claude: Any) -> None:
    question = {"role": "user", "content": [{"type": "text", "text": "What is the weather in Paris?"}]}
    asked = ASKED | {"messages": [question]}
    first = claude.messages.create(**asked, **CALLED)
    assert first.stop_reason == "tool_use"
    (use,) = first.content
    assert (use.type, use.name, set(use.input)) == ("tool_use", "get_weather", {"city"})
    with claude.messages.stream(**asked, **CALLED) as stream:
        (streamed,) = stream.get_final_message().content
    assert (streamed.name, streamed.input) == (use.name, use.input)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "21 degrees"}]}
    messages = [question, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = claude.messages.create(
        **asked | {"messages": messages}, tools=[TOOL], tool_choice={"type": "none"}, system="Be brief."
    )
    assert "21" in second.content[0].text


def test_an_answer_fits_a_schema(claude: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    config = {"format": {"type": "json_schema", "schema": schema}}
    answer = claude.messages.create(**ASKED, output_config=config)
    assert json.loads(answer.content[0].text)["n"] in (1, 2)


def test_what_is_not_supported_is_refused_by_name(claude: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="'thinking'") as raised:
        claude.messages.create(**ASKED, thinking={"type": "enabled", "budget_tokens": 2000})
    assert raised.value.body["type"] == "error"
    assert raised.value.body["error"]["type"] == "invalid_request_error"
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match="'text', 'tool_use', 'tool_result'"):
        claude.messages.create(**ASKED | {"messages": [{"role": "user", "content": [image]}]})
    with pytest.raises(anthropic.NotFoundError, match="no/such"):
        claude.messages.create(**ASKED | {"model": "no/such"})


def test_an_error_on_the_way_is_the_last_event(claude: Any, engine: WholeModel) -> None:
    engine.trouble, engine.trouble_after = SessionFailed("the swarm fell apart"), 3
    with pytest.raises(anthropic.APIStatusError, match="fell apart"), claude.messages.stream(**ASKED) as stream:
        list(stream.text_stream)


def test_a_key_is_taken_in_anthropics_header(served: Callable[..., str], whole_model: WholeModel) -> None:
    url = served(whole_model, api_key="s3cret")
    with anthropic.Anthropic(base_url=url, api_key="s3cret", max_retries=0) as client:
        assert client.messages.create(**ASKED | {"max_tokens": 1}).content
    with (
        anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError, match="API key"),
    ):
        client.messages.create(**ASKED)
    refused = httpx.post(f"{url}/v1/messages", headers={"x-api-key": "s3cre"}).json()
    assert refused["error"]["type"] == "authentication_error"
