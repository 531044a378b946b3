"""The API as OpenAI's own client sees it: real HTTP, a real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from swarm.tokenizer import Tokenizer
from tests.openai_api.engine import BARE, MODEL, PARTIAL, WholeModel

pytestmark = pytest.mark.model
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def tokenizer(whole_model: WholeModel) -> Tokenizer:
    tokenizer = asyncio.run(whole_model.tokenizer(MODEL))
    assert tokenizer is not None
    return tokenizer


def test_the_models_of_the_swarm_are_listed_those_first_that_can_be_used(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == [BARE, MODEL, PARTIAL]
    assert client.models.retrieve(MODEL).id == MODEL
    assert models[1].context_length == 8192  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("no/such")
    assert raised.value.code == "model_not_found"


def test_a_models_name_may_be_written_in_other_capitals(client: openai.OpenAI, url: str) -> None:
    for name in ("SmolLM2-135M", MODEL):
        assert client.chat.completions.create(model=name, messages=QUESTION, max_tokens=1).model == MODEL
        assert client.embeddings.create(model=name, input="a").model == MODEL
        assert client.models.retrieve(name).id == MODEL
    counted = httpx.post(f"{url}/tokenize", json={"model": MODEL.upper(), "prompt": "a"})
    assert counted.json()["count"] == 1
    with pytest.raises(openai.NotFoundError, match=f"{BARE}, {PARTIAL}, {MODEL}"):
        client.models.retrieve("smollm3")


def test_a_chat_is_answered(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=20)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.system_fingerprint is not None and answer.system_fingerprint.startswith("transformers-")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokenizer.chat(QUESTION))
    assert answer.usage.completion_tokens == len(tokenizer.encode(ANSWER)) + 1  # the token that ends it is one too
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_piece_by_piece(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            temperature=0,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert len([delta for delta in deltas if delta.content]) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 8


def test_requests_at_the_same_time_are_answered_side_by_side(url: str, engine: WholeModel) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=8)
                    for _ in range(3)
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == [ANSWER] * 3


def test_the_events_are_those_of_the_specification(url: str, engine: WholeModel) -> None:
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 3, "stream": True}
    engine.notices = ["server-2 took over\nfrom server-1"]
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"].startswith("req_")
        events = response.read().decode().split("\n\n")
    assert events[0] == ": server-2 took over from server-1"
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[1:-2]]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, None, "length"]
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI, stream: bool) -> None:
    """ " of Fr" lies across three tokens, and "is P" would come later."""
    asked: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "temperature": 0, "stop": ["is P", " of Fr"]}
    if not stream:
        choice = client.chat.completions.create(**asked).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("The capital", "stop")
        return
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The capital"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stop_string_stops_the_swarm_too(client: openai.OpenAI, engine: WholeModel) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, stop=".", max_tokens=500
    )
    assert answer.choices[0].text == " Paris"
    assert answer.usage is not None and answer.usage.completion_tokens == 2
    assert engine.idle.wait(30)


def test_one_seed_gives_one_answer_and_each_choice_has_its_own(client: openai.OpenAI, engine: WholeModel) -> None:
    def ask(**more: Any) -> list[str]:
        answer = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=6, **more)
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
        return [choice.text for choice in answer.choices]

    both = ask(seed=7, n=2)
    assert both[0] != both[1]
    assert ask(seed=7) == both[:1]
    assert ask(seed=8) == both[1:]
    assert ask(seed=7, top_p=0) == ask(seed=8, temperature=0)
    ask()
    ask()
    first, second = (sampling.seed for sampling in engine.asked[-2:])
    assert first != second


def test_several_prompts_and_choices_stream_side_by_side(client: openai.OpenAI) -> None:
    prompts = ["The capital of France is", "The opposite of hot is"]
    asked: dict[str, Any] = {"model": MODEL, "prompt": prompts, "n": 2, "max_tokens": 4, "seed": 3, "echo": True}
    whole = client.completions.create(**asked)
    assert [choice.text.startswith(prompts[choice.index // 2]) for choice in whole.choices] == [True] * 4
    texts = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {choice.index: choice.text for choice in whole.choices}


def test_what_a_client_needs_to_make_prompts_is_told_as_vllm_tells_it(
    url: str, served: Callable[..., str], whole_model: WholeModel, tokenizer: Tokenizer
) -> None:
    info = httpx.get(f"{url}/tokenizer_info", params={"model": MODEL}).json()
    assert (info["bos_token"], info["eos_token"], info["model_max_length"]) == ("<|im_start|>", "<|im_end|>", 8192)
    assert info["chat_template"] == tokenizer.chat_template
    unnamed = httpx.get(f"{url}/tokenizer_info")
    assert unnamed.status_code == 400 and f"{BARE}, {MODEL}, {PARTIAL}" in unnamed.json()["error"]["message"]
    (one,) = (model for model in whole_model.models() if model.name == MODEL)
    alone = served(SimpleNamespace(models=lambda: [one], tokenizer=whole_model.tokenizer))
    ids = httpx.post(f"{alone}/tokenize", json={"prompt": "<|im_end|>", "add_special_tokens": False}).json()["tokens"]
    assert set(ids) == tokenizer.stop_ids
    assert httpx.post(f"{alone}/detokenize", json={"tokens": ids}).json()["prompt"] == "<|im_end|>"
    assert httpx.get(f"{alone}/tokenizer_info").json() == info


def test_token_ids_go_in_and_come_out(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The capital of France is")
    asked: dict[str, Any] = {"prompt": ids, "temperature": 0, "max_tokens": 3, "extra_body": {"return_token_ids": True}}
    text = client.completions.create(model=MODEL, **asked).choices[0]
    bare = client.completions.create(model=BARE, **asked).choices[0]
    assert text.text == tokenizer.decode(text.token_ids)  # type: ignore[attr-defined]
    assert bare.text == ""
    assert bare.token_ids == text.token_ids  # type: ignore[attr-defined]
    streamed = client.completions.create(model=BARE, **asked, stream=True)
    assert [i for chunk in streamed for i in getattr(chunk.choices[0], "token_ids", [])] == text.token_ids  # type: ignore[attr-defined]
    with pytest.raises(openai.BadRequestError, match="no tokenizer"):
        client.completions.create(model=BARE, prompt="text")


def test_sampling_parameters_reach_the_model(client: openai.OpenAI, engine: WholeModel, tokenizer: Tokenizer) -> None:
    paris = tokenizer.encode(" Paris")[0]
    asked: dict[str, Any] = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 1}
    assert client.completions.create(**asked).choices[0].text == " Paris"
    assert client.completions.create(**asked, logit_bias={str(paris): -100}).choices[0].text != " Paris"
    answer = client.completions.create(
        **asked | {"max_tokens": 30}, extra_body={"ignore_eos": True, "stop_token_ids": [paris], "top_k": 5}
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert engine.asked[-1].stop_ids == (paris,)
    assert engine.asked[-1].top_k == 5


def test_log_probabilities_of_a_chat(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": QUESTION,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    assert whole is not None and whole.content is not None
    assert b"".join(bytes(token.bytes or ()) for token in whole.content).decode() == ANSWER
    for token in whole.content:
        assert len(token.top_logprobs) == 2
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
    streamed = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        if (logprobs := chunk.choices[0].logprobs) is not None:
            streamed += logprobs.content or []
    assert [(token.token, token.logprob) for token in streamed] == [
        (token.token, pytest.approx(token.logprob, abs=1e-4)) for token in whole.content
    ]


def test_log_probabilities_of_a_prompt_are_those_of_generating_it(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    """`echo` with `logprobs` scores the prompt, as evaluations need it."""
    start = "The capital of France is"
    said = client.completions.create(model=MODEL, prompt=start, temperature=0, max_tokens=5, logprobs=1).choices[0]
    assert said.logprobs is not None and said.logprobs.text_offset is not None
    assert "".join(said.logprobs.tokens or ()) == said.text
    assert [
        said.text[at:][: len(t)] for at, t in zip(said.logprobs.text_offset, said.logprobs.tokens or (), strict=True)
    ] == said.logprobs.tokens

    text = start + said.text
    scored = client.completions.create(model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=1).choices[0]
    assert (scored.text, scored.finish_reason) == (text, "length")
    assert scored.logprobs is not None
    assert "".join(scored.logprobs.tokens or ()) == text
    assert scored.logprobs.token_logprobs is not None and scored.logprobs.token_logprobs[0] is None
    assert scored.logprobs.token_logprobs[-5:] == pytest.approx(said.logprobs.token_logprobs, abs=1e-3)
    assert scored.logprobs.text_offset is not None
    assert scored.logprobs.text_offset[-5:] == [len(start) + at for at in said.logprobs.text_offset]


def test_a_conversation_goes_on_with_the_message_that_came_back(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0).choices[0].message
    messages = [*QUESTION, first, {"role": "user", "content": [{"type": "text", "text": "And of Italy?"}]}]
    second = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=12)
    assert "Rome" in (second.choices[0].message.content or "")
