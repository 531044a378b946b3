"""What goes out is what OpenAI's own client expects, field by field."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from openai_api.gateway import fingerprint
from openai_api.generation.choice import ChoicePiece, TokenEntry
from openai_api.generation.generation import number, sse
from openai_api.generation.token_texts import TokenTexts
from openai_api.protocol.chat import ChatFormat
from openai_api.protocol.chunks import ChoiceFormat, usage
from openai_api.protocol.completions import CompletionFormat
from routing import wire
from swarm import ServedModel
from tests.openai_api.engine import server


class Letters:
    """A tokenizer in which the tokens 0 to 255 are bytes."""

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


TEXTS = TokenTexts(Letters())  # type: ignore[arg-type]
HEAD = {"id": "x-1", "created": 1, "model": "m", "system_fingerprint": "f"}
logprobs = st.floats(max_value=0, allow_nan=False)
entries = st.builds(
    TokenEntry,
    st.integers(0, 255),
    st.integers(0, 100),
    logprobs,
    st.lists(st.tuples(st.integers(0, 255), logprobs), max_size=3).map(tuple),
)
pieces = st.builds(
    ChoicePiece,
    st.text(max_size=5),
    st.lists(entries, max_size=3).map(tuple),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.sampled_from(["stop", "length"]),
)


def strict(kind: Any, body: dict[str, Any]) -> Any:
    """Through JSON, as it is sent, and into the client's type, refusing what does not fit."""
    text = json.dumps(body, allow_nan=False)
    return kind.model_validate_json(text, strict=True)


@given(pieces, st.booleans())
def test_chat_completions_fit_openais_types(piece: ChoicePiece, with_logprobs: bool) -> None:
    form = ChatFormat(TEXTS, with_logprobs)
    body = HEAD | {"object": form.whole_object, "choices": [form.whole(0, piece)], "usage": usage(1, 2)}
    whole = strict(ChatCompletion, body)
    assert whole.choices[0].message.content == piece.text
    assert whole.choices[0].finish_reason == piece.finish
    assert (whole.choices[0].logprobs is not None) == with_logprobs
    if with_logprobs:
        content = whole.choices[0].logprobs.content
        assert [bytes(token.bytes) for token in content] == [bytes([entry.token]) for entry in piece.entries]
        assert [len(token.top_logprobs) for token in content] == [len(entry.top) for entry in piece.entries]
    for choice in (form.opening(0), form.chunk(0, piece), form.closing(0, "stop")):
        strict(ChatCompletionChunk, HEAD | {"object": form.chunk_object, "choices": [choice]})


@given(pieces, st.booleans())
def test_completions_fit_openais_types(piece: ChoicePiece, with_logprobs: bool) -> None:
    form = CompletionFormat(TEXTS, with_logprobs)
    body = HEAD | {"object": form.whole_object, "choices": [form.whole(3, piece)], "usage": usage(1, 2)}
    choice = strict(Completion, body).choices[0]
    assert (choice.text, choice.index, choice.finish_reason) == (piece.text, 3, piece.finish)
    if with_logprobs:
        assert choice.logprobs.text_offset == [entry.offset for entry in piece.entries]
        for token, own, top in zip(
            choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True
        ):
            assert token in top
            assert own <= 0


@pytest.mark.parametrize("form", [ChatFormat(TEXTS, True), CompletionFormat(TEXTS, True)])
def test_a_chunk_without_tokens_still_is_a_chunk(form: ChoiceFormat) -> None:
    assert json.dumps(form.chunk(0, ChoicePiece("a")))


def test_the_first_token_of_a_prompt_has_no_log_probability() -> None:
    piece = ChoicePiece("ab", (TokenEntry(97, 0, None, ()), TokenEntry(98, 1, -0.5, ((99, -0.25), (98, -0.5)))))
    assert CompletionFormat(TEXTS, True).whole(0, piece)["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"c": -0.25, "b": -0.5}],
        "text_offset": [0, 1],
    }


def test_json_gets_no_infinity() -> None:
    assert number(-math.inf) == -9999.0


def test_bytes_that_are_no_text_are_spelled() -> None:
    assert TEXTS.text(0xE2) == "bytes:\\xe2"
    assert TEXTS.content(0xE2) == b"\xe2"
    assert TokenTexts(None).text(5) == "token_id:5"
    assert TokenTexts(None).content(5) is None


@given(st.text())
def test_an_event_is_one_line_whatever_it_says(text: str) -> None:
    event = sse({"text": text})
    assert event.startswith(b"data: {") and event.endswith(b"}\n\n")
    assert b"\n" not in event[:-2] and b"\r" not in event
    assert json.loads(event[6:]) == {"text": text}


def test_the_fingerprint_changes_with_what_computes_the_model() -> None:
    def of(**fields: Any) -> str:
        return fingerprint(ServedModel("m", 30, 0, (server("m", end=10, **fields), server("m", start=10)), ()))

    assert of().startswith("transformers-0.1.0+")
    assert of() == of(throughput=5.0, load=wire.ServerLoad(sessions=3))
    assert len({of(), of(quantize="nf4")}) == 2
