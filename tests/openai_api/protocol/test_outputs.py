"""What is written of an answer is what OpenAI's and Anthropic's own clients expect, in whatever order it comes."""

from __future__ import annotations

import json
from typing import Any

import anthropic.types
import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from openai_api.errors import shutting_down
from openai_api.generation.choice import ChoicePiece
from openai_api.generation.generation import Answer, joined
from openai_api.generation.token_texts import TokenTexts
from openai_api.generation.tool_parser import ToolCallDelta
from openai_api.protocol.chat import ChatFormat
from openai_api.protocol.chunks import Chunked
from openai_api.protocol.messages import MessageOutput, error_body
from openai_api.protocol.openapi import ChatCompletion as DocumentedChat
from openai_api.protocol.openapi import MessageObject, ResponseObject
from openai_api.protocol.responses import ResponseOutput, ResponsesRequest

responses: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
messages: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
ARGUMENTS = '{"a": 1}'


@st.composite
def answers(draw: st.DrawFn) -> list[ChoicePiece]:
    """The pieces of one choice: text, then calls, with text between them."""
    pieces, calls = [], draw(st.integers(0, 3))
    for index in range(calls + 1):
        pieces += [ChoicePiece(text, tokens=(1,)) for text in draw(st.lists(st.text(max_size=3), max_size=3))]
        if index < calls:
            name, cut = draw(st.sampled_from(["f", "g"])), draw(st.integers(0, len(ARGUMENTS)))
            parts = [ToolCallDelta(index, f"c{index}", name, "", True)]
            parts += [
                ToolCallDelta(index, f"c{index}", name, part, False) for part in (ARGUMENTS[:cut], ARGUMENTS[cut:])
            ]
            pieces += [ChoicePiece(calls=(part,), tokens=(2,)) for part in parts]
    finish = draw(st.sampled_from(["length", "tool_calls" if calls else "stop"]))
    stop = draw(st.sampled_from(["", "END"])) if finish == "stop" else ""
    return [*pieces, ChoicePiece(finish=finish, stop=stop)]


def answer(output: Any) -> Answer:
    return Answer("x_1", "m", 1, "f", output, (), None, (), 7, False, True)


def written(output: Any, pieces: list[ChoicePiece]) -> tuple[Any, list[tuple[str, Any]]]:
    """The body, and the events as (name, content)."""
    whole = joined(pieces)
    made = answer(output)
    body = json.loads(json.dumps(output.body(made, [whole], len(whole.tokens)), allow_nan=False))
    stream = output.stream(made)
    events = [event for piece in pieces for event in stream.piece(0, piece)] + list(stream.end(len(whole.tokens)))
    found = []
    for event in b"".join(events).decode().split("\n\n")[:-1]:
        name, _, data = event.rpartition("data: ")
        found.append((name.removeprefix("event: ").strip(), None if data == "[DONE]" else json.loads(data)))
    return body, found


@given(answers())
def test_chats(pieces: list[ChoicePiece]) -> None:
    body, events = written(Chunked(ChatFormat(TokenTexts(None), False)), pieces)
    message = ChatCompletion.model_validate(body, strict=True).choices[0].message
    DocumentedChat.model_validate(body, strict=True)
    assert events[-1] == ("", None)
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for _, event in events[:-1]]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == (message.content or "")
    found: dict[int, list[str]] = {}
    for delta in deltas:
        for part in delta.tool_calls or ():
            assert part.function is not None
            if part.index not in found:
                assert part.id and part.function.name
                found[part.index] = [part.id, part.function.name, ""]
            found[part.index][2] += part.function.arguments or ""
    assert list(found.values()) == [[c.id, c.function.name, c.function.arguments] for c in message.tool_calls or ()]  # type: ignore[union-attr]


@given(answers())
def test_responses(pieces: list[ChoicePiece]) -> None:
    output = ResponseOutput(ResponsesRequest(model="m", input="hi"))
    body, events = written(output, pieces)
    whole = Response.model_validate(body)
    ResponseObject.model_validate(body, strict=True)
    typed = [responses.validate_python(event) for _, event in events]
    assert [event.type for event in typed] == [name for name, _ in events]
    assert [event.sequence_number for event in typed] == list(range(len(typed)))
    assert typed[0].type == "response.created" and typed[-1].type == f"response.{whole.status}"
    final = typed[-1].response
    assert final.output_text == whole.output_text
    assert [item.name for item in final.output if item.type == "function_call"] == [
        item.name for item in whole.output if item.type == "function_call"
    ]
    assert len({item.id for item in final.output}) == len(final.output)
    done = [event for event in typed if event.type == "response.output_item.done"]
    assert [event.output_index for event in done] == list(range(len(final.output)))
    assert [event.item for event in done] == final.output
    failed = json.loads(output.failure(shutting_down()).decode().partition("data: ")[2])
    assert (failed["type"], failed["sequence_number"]) == ("error", len(typed))


@given(answers())
def test_messages(pieces: list[ChoicePiece]) -> None:
    body, events = written(MessageOutput(), pieces)
    whole = anthropic.types.Message.model_validate(body)
    MessageObject.model_validate(body, strict=True)
    typed = [messages.validate_python(event) for _, event in events]
    assert [event.type for event in typed] == [name for name, _ in events]
    assert (typed[0].type, typed[-1].type) == ("message_start", "message_stop")
    assert typed[-2].delta.stop_reason == whole.stop_reason
    blocks: dict[int, str] = {}
    for event in typed:
        if event.type == "content_block_start":
            assert event.index == len(blocks)
            blocks[event.index] = ""
        elif event.type == "content_block_delta":
            assert event.index == len(blocks) - 1
            blocks[event.index] += getattr(event.delta, "text", "") or getattr(event.delta, "partial_json", "")
    said = "".join(block.text for block in whole.content if block.type == "text")
    assert "".join(text for text in blocks.values() if text != ARGUMENTS) == said
    assert [block.input for block in whole.content if block.type == "tool_use"] == [
        json.loads(text) for text in blocks.values() if text == ARGUMENTS
    ]


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (429, "rate_limit_error"), (502, "api_error"), (405, None)]
)
def test_errors_have_anthropics_kinds(status: int, kind: str | None) -> None:
    problem = shutting_down()
    problem.status = status
    body = error_body(problem, "req_1")
    assert body["type"] == "error" and body["request_id"] == "req_1"
    assert body["error"] == {"type": kind or "invalid_request_error", "message": problem.message}
