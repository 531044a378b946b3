"""Function calls and response formats as OpenAI's own client sees them: real HTTP, a real model."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from swarm import Sampling
from swarm.grammar import of_schema, problem_of
from tests.openai_api.engine import BARE, MODEL, WholeModel

pytestmark = pytest.mark.model
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}
ASKED: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "temperature": 0, "tools": [WEATHER, TIME]}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


def test_a_function_that_is_asked_for_is_called(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**ASKED, tool_choice=NAMED).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or ()
    assert call.type == "function" and call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"} and arguments["unit"] in "CF" and len(arguments["city"]) <= 12


def test_a_stream_of_a_call_says_the_same_piece_by_piece(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, tool_choice=NAMED, seed=1).choices[0].message
    assert whole.tool_calls is not None
    with client.chat.completions.stream(**ASKED, tool_choice=NAMED, seed=1) as stream:
        deltas = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    (call,) = final.message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == (
        whole.tool_calls[0].function.name,
        whole.tool_calls[0].function.arguments,
    )
    assert "".join(deltas) == call.function.arguments and len(deltas) > 5


def test_some_function_is_called_when_one_is_required(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED, tool_choice="required", parallel_tool_calls=False, max_tokens=120)
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.name in ("get_weather", "get_time")
    assert isinstance(json.loads(call.function.arguments), dict)


def test_a_conversation_goes_on_with_the_result_of_a_call(client: openai.OpenAI, engine: WholeModel) -> None:
    first = client.chat.completions.create(**ASKED, tool_choice=NAMED).choices[0].message
    assert first.tool_calls is not None
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "It is 21 degrees and sunny."}
    again = ASKED | {"messages": [*QUESTION, first, result]}
    answer = client.chat.completions.create(**again, tool_choice="none", max_tokens=30).choices[0]
    assert answer.message.tool_calls is None
    assert "21" in (answer.message.content or "")
    assert not engine.asked[-1].grammar


def test_without_a_need_the_answer_is_free(client: openai.OpenAI, engine: WholeModel) -> None:
    answer = client.chat.completions.create(**ASKED, max_tokens=8)
    assert answer.choices[0].finish_reason in ("length", "stop", "tool_calls")
    assert not engine.asked[-1].grammar
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    client.chat.completions.create(**ASKED | {"tools": [strict]}, max_tokens=8)
    assert engine.asked[-1].grammar and not problem_of(engine.asked[-1].grammar)


class Person(BaseModel):
    name: str
    age: int


def test_an_answer_fits_the_schema_that_was_asked_for(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Ann is 31 years old. Give her name and her age as JSON."}]
    answer = client.chat.completions.parse(
        model=MODEL, messages=messages, response_format=Person, temperature=0, max_tokens=100
    )
    person = answer.choices[0].message.parsed
    assert person is not None and person.name and isinstance(person.age, int)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_json_object_is_one(client: openai.OpenAI, seed: int) -> None:
    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "object", "maxProperties": 2}},
    }
    for wanted in ({"type": "json_object"}, schema):
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, response_format=wanted, seed=seed, max_tokens=60
        ).choices[0]
        text = answer.message.content or ""
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(text), dict)
        else:
            assert text.startswith("{")


def test_an_answer_matches_a_regular_expression(client: openai.OpenAI) -> None:
    date = r"(19|20)\d\d-(0[1-9]|1[0-2])-[0-3]\d"
    asked: Any = {"response_format": {"type": "regex", "pattern": date}}
    answer = client.completions.create(model=MODEL, prompt="The date is ", seed=4, max_tokens=30, extra_body=asked)
    assert re.fullmatch(date, answer.choices[0].text) and answer.choices[0].finish_reason == "stop"


def test_an_answer_follows_a_grammar(client: openai.OpenAI) -> None:
    asked: Any = {"type": "grammar", "grammar": 'start: "yes" | "no" | "perhaps"'}
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, response_format=asked, seed=3)
    assert answer.choices[0].message.content in ("yes", "no", "perhaps")


@pytest.mark.parametrize(
    ("wanted", "param", "words"),
    [
        ({"type": "regex", "pattern": "("}, "response_format.pattern", "unclosed"),
        ({"type": "grammar", "grammar": "start: nowhere"}, "response_format.grammar", "nowhere"),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "x", "strict": True, "schema": {"type": "object", "if": {}}},
            },
            "response_format.json_schema.schema",
            "if",
        ),
    ],
)
def test_what_no_answer_can_follow_is_refused(client: openai.OpenAI, wanted: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as raised:
        client.chat.completions.create(model=MODEL, messages=QUESTION, response_format=wanted)
    assert (raised.value.param, raised.value.code) == (param, "invalid_grammar")


def test_functions_whose_schema_cannot_be_followed_are_refused(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/nowhere"}}}
    with pytest.raises(openai.BadRequestError, match="nowhere"):
        client.chat.completions.create(**ASKED | {"tools": [tool]}, tool_choice="required")
    with pytest.raises(openai.BadRequestError, match="65536"):
        parameters = {"properties": {f"p{i}": {"type": "string"} for i in range(5000)}}
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        client.chat.completions.create(**ASKED | {"tools": [tool]}, tool_choice="required")


def test_a_model_without_a_tokenizer_can_follow_no_format(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no tokenizer"):
        client.completions.create(
            model=BARE, prompt=[1], extra_body={"response_format": {"type": "regex", "pattern": "a"}}
        )


def test_a_grammar_reaches_the_tail_as_it_was_asked_for(client: openai.OpenAI, engine: WholeModel) -> None:
    client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_format={"type": "json_object"}, max_tokens=1, temperature=0
    )
    assert engine.asked[-1].grammar == of_schema({"type": "object"}, strict=False)
    assert engine.asked[-1] == Sampling(
        grammar=engine.asked[-1].grammar, stop_ids=engine.asked[-1].stop_ids, seed=engine.asked[-1].seed
    )
