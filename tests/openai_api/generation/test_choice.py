"""From tokens to text: what a choice shows piece by piece is what the tokens say, cut at the first stop string."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openai_api.generation.choice import Choice, ChoicePiece
from openai_api.generation.generation import joined
from openai_api.generation.tool_parser import CallSyntax, ToolCallParser
from routing import wire
from swarm.tokenizer import Tokenizer
from tests.openai_api.generation.test_stops import cut

pytestmark = pytest.mark.model
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
token_ids = st.lists(st.integers(0, 49151), max_size=12)
finishes = st.sampled_from(["", "stop", "length"])


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(smollm2)
    assert tokenizer is not None
    return tokenizer


def run(
    choice: Choice, ids: list[int], finish: Literal["", "stop", "length"] = "", end_token: int = 2
) -> list[ChoicePiece]:
    """The pieces of a choice; `finish` is how the swarm ends it, "" for a stream that just ends."""
    steps = [wire.Token("s" * 32, 1, at, token, logprob=-1.0) for at, token in enumerate(ids)]
    if finish == "stop":
        steps.append(wire.Token("s" * 32, 1, len(ids), end_token, "stop", -1.0))
    elif finish == "length" and ids:
        steps[-1] = wire.Token("s" * 32, 1, len(ids) - 1, ids[-1], "length", -1.0)
    pieces = []
    for step in steps:
        pieces.append(choice.push(step))
        if pieces[-1].finish:
            return pieces
    return [*pieces, choice.end()]


@relaxed
@given(ids=token_ids, finish=finishes, data=st.data())
def test_a_choice_shows_what_its_tokens_say_up_to_the_stop_string(
    tokenizer: Tokenizer, ids: list[int], finish: Literal["", "stop", "length"], data: st.DataObject
) -> None:
    text = tokenizer.decode(ids)
    # Stop strings out of the text itself, so that they are found, and across tokens.
    spans = st.tuples(st.integers(0, len(text)), st.integers(1, 6))
    stops = [text[at : at + length] for at, length in data.draw(st.lists(spans, max_size=4)) if text[at : at + length]]
    pieces = run(Choice(tokenizer, stops), ids, finish)
    shown = "".join(piece.text for piece in pieces)
    assert shown == cut(text, stops)
    stopped = shown != text
    assert pieces[-1].finish == ("stop" if stopped or finish == "stop" else "length")
    assert [piece.finish for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert tokens == ([*ids, 2] if finish == "stop" else ids)[: len(tokens)]
    assert stopped or len(tokens) == len(ids) + (finish == "stop")


@relaxed
@given(ids=token_ids, echo=st.integers(0, 20), data=st.data())
def test_log_probabilities_belong_to_the_tokens_whose_text_is_shown(
    tokenizer: Tokenizer, ids: list[int], echo: int, data: st.DataObject
) -> None:
    text = tokenizer.decode(ids)
    at = data.draw(st.integers(0, len(text)))
    stops = [text[at : at + 3]] if text[at : at + 3] else []
    pieces = run(Choice(tokenizer, stops, echo), ids, "stop")
    whole = joined(pieces)
    assert [entry.token for entry in whole.entries] == ids[: len(whole.entries)]
    offsets = [entry.offset - echo for entry in whole.entries]
    assert offsets == sorted(offsets)
    if whole.text == text:
        assert len(whole.entries) == len(ids)
    else:
        assert all(offset < len(whole.text) for offset in offsets)
    shown = 0
    for piece in pieces[:-1]:
        shown += len(piece.text)
        assert all(entry.offset - echo < shown for entry in piece.entries)


def test_a_token_of_a_cut_word_is_shown_with_what_is_left_of_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two\nthree")
    whole = joined(run(Choice(tokenizer, ["o\nth"]), ids))
    assert whole.text == "one tw"
    assert [tokenizer.decode([entry.token]) for entry in whole.entries] == ["one", " two"]
    assert [entry.offset for entry in whole.entries] == [0, 3]


def test_without_a_tokenizer_there_are_tokens_and_no_text() -> None:
    pieces = run(Choice(None), [5, 6, 7], "length")
    assert [piece.tokens for piece in pieces] == [(5,), (6,), (7,)]
    assert [entry.token for piece in pieces for entry in piece.entries] == [5, 6, 7]
    assert joined(pieces).text == ""
    assert pieces[-1].finish == "length"


def test_calls_between_special_tokens_are_read_and_other_special_tokens_stay_hidden(tokenizer: Tokenizer) -> None:
    """As Mistral writes them: its marker is a special token, here <|im_start|>."""
    start, other = 1, 3
    assert tokenizer.special_id("<|im_start|>") == start and tokenizer.special_id("im_start") is None
    assert {start, other} <= tokenizer.special_ids
    syntax = CallSyntax("<|im_start|>", "]", " \t\r\n[,")
    reader = ToolCallParser(syntax, {"add"}, 16, lambda: "id")
    written = tokenizer.encode('[{"name": "add", "arguments": {"a": 1}}]')
    ids = [*tokenizer.encode("Well."), other, start, *written]
    whole = joined(run(Choice(tokenizer, reader=reader, keep={start}), ids, "stop"))
    assert (whole.text, whole.finish) == ("Well.", "tool_calls")
    assert [(call.name, call.arguments) for call in whole.calls] == [("add", '{"a": 1}')]
    assert len(whole.tokens) == len(ids) + 1


def test_a_choice_ends_with_the_last_call_that_is_wanted(tokenizer: Tokenizer) -> None:
    reader = ToolCallParser(CallSyntax("<tool_call>", "</tool_call>"), {"add"}, 1, lambda: "id")
    ids = tokenizer.encode('<tool_call>{"name": "add", "arguments": {}}</tool_call> and more')
    pieces = run(Choice(tokenizer, reader=reader), ids)
    assert pieces[-1].finish == "tool_calls" and len(pieces) < len(ids)
