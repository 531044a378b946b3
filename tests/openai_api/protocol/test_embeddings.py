"""Embeddings, tokens and the list of models: real HTTP, a real model."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from transformers import DynamicCache

from openai_api.protocol.embeddings import PART, normalised, shortened
from tests.openai_api.engine import BARE, MODEL, PARTIAL, WholeModel

pytestmark = pytest.mark.model
TEXTS = ["The cat sits on the mat.", "A cat is sitting on a mat.", "Interest rates rose again in March."]


def test_embeddings_are_pooled_and_normalised(client: openai.OpenAI, engine: WholeModel) -> None:
    found = client.embeddings.create(model=MODEL, input=TEXTS)  # the client asks for base64
    vectors = np.array([each.embedding for each in found.data])
    assert [each.index for each in found.data] == [0, 1, 2]
    assert vectors.shape == (3, 576)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    tokenizer = asyncio.run(engine.tokenizer(MODEL))
    assert tokenizer is not None
    ids = tokenizer.encode(TEXTS[0])
    hidden = engine.hidden(ids, DynamicCache())
    assert vectors[0] == pytest.approx(normalised(hidden.mean(axis=0)), abs=1e-4)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert found.usage.prompt_tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)

    last = client.embeddings.create(model=MODEL, input=TEXTS[0], extra_body={"pooling": "last"}).data[0].embedding
    assert last == pytest.approx(list(normalised(hidden[-1])), abs=1e-4)


def test_embeddings_come_as_numbers_too_and_shorter(client: openai.OpenAI) -> None:
    numbers = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="float").data[0].embedding
    packed = client.embeddings.create(model=MODEL, input=TEXTS[0]).data[0].embedding
    assert numbers == pytest.approx(packed)
    short = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=8).data[0].embedding
    assert short == pytest.approx(list(shortened(np.array(numbers, np.float32), 8)))
    assert np.linalg.norm(short) == pytest.approx(1)


def test_a_text_longer_than_a_part_is_one_embedding(client: openai.OpenAI, engine: WholeModel) -> None:
    ids = [5 + i % 100 for i in range(PART + 30)]
    vector = client.embeddings.create(model=BARE, input=ids).data[0].embedding
    hidden = engine.hidden(ids, DynamicCache())
    assert vector == pytest.approx(list(normalised(hidden.mean(axis=0))), abs=1e-3)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": MODEL, "input": ""}, 400, "input"),
        ({"model": MODEL, "input": []}, 400, "input"),
        ({"model": MODEL, "input": "a " * 9000}, 400, "input"),
        ({"model": BARE, "input": "a"}, 400, "prompt"),
        ({"model": PARTIAL, "input": "a"}, 503, None),
        ({"model": "no", "input": "a"}, 404, "model"),
        ({"model": MODEL, "input": "a", "pooling": "cls"}, 400, "pooling"),
    ],
)
def test_what_cannot_be_embedded_is_said(url: str, body: Any, status: int, param: str | None) -> None:
    answer = httpx.post(f"{url}/v1/embeddings", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_texts_become_tokens_and_tokens_texts(url: str, engine: WholeModel) -> None:
    def post(path: str, **body: Any) -> Any:
        return httpx.post(f"{url}{path}", json={"model": MODEL, **body}).json()

    found = post("/tokenize", prompt="Hello, Welt!", return_token_strs=True)
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == 8192
    assert "".join(found["token_strs"]) == "Hello, Welt!"
    assert post("/detokenize", tokens=found["tokens"]) == {"prompt": "Hello, Welt!"}
    chat = post("/tokenize", messages=[{"role": "user", "content": "Hi"}])
    assert "<|im_start|>user\nHi<|im_end|>" in post("/detokenize", tokens=chat["tokens"])["prompt"]
    assert post("/tokenize")["error"]["param"] == "prompt"
    assert httpx.post(f"{url}/detokenize", json={"model": BARE, "tokens": [1]}).status_code == 400


def test_models_are_listed_with_their_spans_and_those_that_could_be_served(url: str, engine: WholeModel) -> None:
    listed = {model["id"]: model for model in httpx.get(f"{url}/v1/models").json()["data"]}
    assert listed[MODEL]["status"] == "ready" and listed[MODEL]["context_length"] == 8192
    assert listed[MODEL]["spans"] == [{"server": "server-1", "blocks": "0:30", "state": "ready"}]
    assert (listed[PARTIAL]["status"], listed[PARTIAL]["missing"]) == ("incomplete", ["20:30"])
    every = httpx.get(f"{url}/v1/models", params={"available": "true"}).json()["data"]
    assert [model["id"] for model in every[:3]] == list(listed)
    others = {model["id"]: model for model in every[3:]}
    assert {model["status"] for model in others.values()} == {"available"}
    assert "qwen3-8b" in others and MODEL not in others
