"""`/v1/responses` as OpenAI's own client sees it: real HTTP, a real model."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from swarm import SessionFailed
from tests.openai_api.engine import MODEL, WholeModel

pytestmark = pytest.mark.model
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALLED: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "function", "name": "get_weather"}}


class City(BaseModel):
    city: str


def test_a_question_is_answered(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=40, store=False)
    assert (answer.output_text, answer.status, answer.object) == (ANSWER, "completed", "response")
    assert answer.id.startswith("resp_") and answer.error is None and answer.incomplete_details is None
    assert answer.usage is not None
    assert answer.usage.output_tokens == 8
    assert answer.usage.total_tokens == answer.usage.input_tokens + 8


def test_an_answer_that_was_cut_off_says_so(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"


def test_a_conversation_goes_on_with_the_items_that_came_back(client: openai.OpenAI) -> None:
    first = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=20)
    told = client.responses.create(model=MODEL, input=QUESTION, instructions="Be brief. " * 20, max_output_tokens=1)
    assert told.usage is not None and first.usage is not None
    assert told.usage.input_tokens > first.usage.input_tokens + 20
    items: Any = [{"role": "user", "content": QUESTION}, *first.output]
    items.append({"role": "user", "content": [{"type": "input_text", "text": "And of Italy?"}]})
    second = client.responses.create(model=MODEL, input=items, temperature=0, max_output_tokens=12)
    assert "Rome" in second.output_text


def test_the_events_of_a_stream_are_named_and_numbered(client: openai.OpenAI) -> None:
    stream = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=40, stream=True)
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 5
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == ANSWER
    assert events[-1].response.usage is not None and events[-1].response.usage.output_tokens == 8


def test_the_sdk_accumulates_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=40) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == ANSWER


def test_a_function_is_called_and_its_result_is_used(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "input": "What is the weather in Paris?", "temperature": 0}
    first = client.responses.create(**asked, **CALLED)
    (call,) = first.output
    assert call.type == "function_call" and call.name == "get_weather"
    assert set(json.loads(call.arguments)) == {"city"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
    items: Any = [{"role": "user", "content": asked["input"]}, call, result]
    second = client.responses.create(model=MODEL, input=items, temperature=0, tools=[TOOL], tool_choice="none")
    assert "21" in second.output_text

    events = list(client.responses.create(**asked, **CALLED, stream=True))
    kinds = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments and len(deltas) > 3
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-3:] == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"]


def test_an_answer_fits_a_schema(client: openai.OpenAI) -> None:
    answer = client.responses.parse(
        model=MODEL, input="Name a city as JSON.", text_format=City, temperature=0, max_output_tokens=60
    )
    assert isinstance(answer.output_parsed, City)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("conversation", "conv_1"),
        ("background", True),
        ("store", True),
        ("reasoning", {"effort": "high"}),
        ("include", ["message.output_text.logprobs"]),
        ("truncation", "auto"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: openai.OpenAI, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model=MODEL, input="hi", **{field: value})
    assert (raised.value.param, raised.value.code) == (field, "unsupported_parameter")


def test_tools_and_inputs_of_other_kinds_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'function'"):
        client.responses.create(model=MODEL, input="hi", tools=[{"type": "web_search"}])
    image: Any = {"type": "input_image", "image_url": "https://example.com/x.png", "detail": "auto"}
    with pytest.raises(openai.BadRequestError, match="input_text"):
        client.responses.create(model=MODEL, input=[{"role": "user", "content": [image]}])
    with pytest.raises(openai.BadRequestError, match="call_id"):
        client.responses.create(model=MODEL, input=[{"type": "function_call_output", "output": "x"}])  # type: ignore[list-item,misc]


def test_an_error_on_the_way_is_the_last_event(client: openai.OpenAI, engine: WholeModel) -> None:
    engine.trouble, engine.trouble_after = SessionFailed("the swarm fell apart"), 3
    events = list(client.responses.create(model=MODEL, input=QUESTION, temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-2].type == "response.output_text.delta"
    assert events[-1].type == "error"
    assert (events[-1].message, events[-1].code) == ("the swarm fell apart", "session_failed")
