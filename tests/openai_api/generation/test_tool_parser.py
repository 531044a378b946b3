"""Function calls as families of models write them: read as they come, however they are divided."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_api.generation.tool_formats import GENERIC, HERMES, LLAMA3, MISTRAL, ToolFormat, family_of, prepared
from openai_api.generation.tool_parser import ToolCallParser, merged_calls

NAMES = {"weather", "add"}
WEATHER = ("weather", {"city": "Paris, {F}", "days": [1, 2]})
ADD = ("add", {"a": 1, "text": 'say "<tool_call>" \\ é'})


def written(family: ToolFormat, calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """As the model writes them."""
    objects = [json.dumps({"name": name, family.arguments: arguments}) for name, arguments in calls]
    match family.name:
        case "llama3":
            return "; ".join(objects)
        case "mistral":
            return f"[TOOL_CALLS][{', '.join(objects)}]"
        case _:
            return "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in objects)


def read(family: ToolFormat, pieces: Sequence[str], most: int = 16) -> tuple[str, list[tuple[str, Any]]]:
    reader = ToolCallParser(family.syntax, NAMES, most, family.new_id)
    text, parts = "", []
    for piece in pieces:
        shown, new = reader.push(piece)
        text += shown
        parts += new
    text += reader.flush()
    whole = list(merged_calls(parts))
    assert [call.index for call in whole] == list(range(len(whole)))
    assert len({call.id for call in whole}) == len(whole)
    return text, [(call.name, json.loads(call.arguments)) for call in whole]


def divided(text: str, cuts: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


families = st.sampled_from([HERMES, LLAMA3, MISTRAL, GENERIC])
cuts = st.lists(st.integers(0, 400), max_size=30)


@given(families, st.sampled_from([[WEATHER], [WEATHER, ADD], [ADD, ADD, WEATHER]]), cuts)
def test_calls_are_read_however_they_come(family: ToolFormat, calls: Any, cuts: list[int]) -> None:
    assert read(family, divided(written(family, calls), cuts)) == ("", calls)


@given(st.sampled_from([HERMES, MISTRAL]), cuts)
def test_text_before_calls_is_shown(family: ToolFormat, cuts: list[int]) -> None:
    text = "Let me look. <tool or [TOOL? " + written(family, [WEATHER])
    assert read(family, divided(text, cuts)) == ("Let me look. <tool or [TOOL? ", [WEATHER])


@given(families, st.text(alphabet='{}[]<>"\\:,ab \n', max_size=40), cuts)
def test_what_is_no_call_is_shown_as_it_is(family: ToolFormat, text: str, cuts: list[int]) -> None:
    assert read(family, divided(text, cuts)) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Paris", "population": 2}',
        '{"name": "Paris", "parameters": {"a": 1}}',
        '{"answer": 42}',
        '{"name": "weather", "param',
    ],
)
def test_json_that_calls_no_known_function_stays_text(text: str) -> None:
    assert read(LLAMA3, list(text)) == (text, [])
    tagged = f"<tool_call>\n{text}\n</tool_call>"
    shown, calls = read(HERMES, list(tagged))
    assert shown == tagged and not calls


def test_arguments_stream_as_they_come() -> None:
    reader = ToolCallParser(HERMES.syntax, NAMES, 16, HERMES.new_id)
    assert reader.push('<tool_call>\n{"name": "wea') == ("", [])
    _, (opened, begun) = reader.push('ther", "arguments": {"city": "Par')
    assert (opened.first, opened.name, opened.arguments, begun.arguments) == (True, "weather", "", '{"city": "Par')
    _, (more,) = reader.push('is"}')
    assert (more.first, more.arguments) == (False, 'is"}')


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        '<tool_call>\n\n{"id": "x", "name": "add", "more": [{"name": 5}], "arguments" : {"a": 1} }  </tool_call>',
    ],
)
def test_the_order_and_the_form_of_a_call_may_differ(text: str) -> None:
    assert read(HERMES, list(text)) == ("", [("add", {"a": 1})])
    assert read(HERMES, [text]) == ("", [("add", {"a": 1})])


def test_a_call_without_arguments_has_none() -> None:
    assert read(HERMES, ['<tool_call>{"name": "add"}</tool_call>']) == ("", [("add", {})])


def test_after_as_many_calls_as_are_wanted_the_answer_is_complete() -> None:
    reader = ToolCallParser(HERMES.syntax, NAMES, 1, HERMES.new_id)
    reader.push(written(HERMES, [WEATHER]))
    assert reader.complete
    assert reader.push(written(HERMES, [ADD])) == ("", [])


@pytest.mark.parametrize(
    ("template", "family"),
    [
        ("{% for tool in tools %}<tool_call>{% endfor %}", HERMES),
        ("[AVAILABLE_TOOLS] [TOOL_CALLS]", MISTRAL),
        ("<|python_tag|> Environment: ipython", LLAMA3),
        ("[TOOL_CALLS]f[ARGS]{}", GENERIC),
        ("<tool_call><function=f>", GENERIC),
        ("{{ messages }}", GENERIC),
        ("", GENERIC),
    ],
)
def test_the_family_is_told_by_the_template(template: str, family: ToolFormat) -> None:
    assert family_of(template) is family


def test_a_template_that_knows_no_functions_gets_them_as_text() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "call_1"},
    ]
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    (system, user, called, result), options = prepared(GENERIC, messages, [tool])
    assert options == {}
    assert system["content"].startswith("Be brief.\n\n") and json.dumps(tool) in system["content"]
    assert user == messages[1]
    assert called == {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
    }
    assert result == {"role": "user", "content": "<tool_response>\n2\n</tool_response>"}
    assert prepared(GENERIC, messages[1:2], [tool])[0][0]["role"] == "system"
    assert prepared(HERMES, messages, [tool]) == (messages, {"tools": [tool]})


def test_ids_are_such_as_the_template_takes() -> None:
    assert len(MISTRAL.new_id()) == 9 and HERMES.new_id().startswith("call_")
    assert MISTRAL.id_of("abcdefghi") == "abcdefghi"
    assert len(MISTRAL.id_of("call_0123")) == 9 and MISTRAL.id_of("call_0123").isalnum()
    messages = [{"role": "tool", "content": "2", "tool_call_id": "call_1"}]
    assert prepared(MISTRAL, messages, [])[0][0]["tool_call_id"] == MISTRAL.id_of("call_1")
