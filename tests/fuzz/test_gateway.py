"""Requests made from the gateway's own OpenAPI document, as it says and in breach of it: none comes to a status of 5xx,
or to one that is not written down."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from swarm.tokenizer import TOKENIZER_FILES, Tokenizer
from tests.openai_api.conftest import serving
from tests.openai_api.engine import BARE, MODEL, WholeModel

CASES = int(os.environ.get("FUZZ_CASES", "40"))  # for each operation and mode
EXPECTED = {
    ("POST", "/v1/completions"): {200, 400, 404, 413},
    ("POST", "/v1/chat/completions"): {200, 400, 404, 413},
    ("POST", "/v1/responses"): {200, 400, 404, 413},
    ("POST", "/v1/messages"): {200, 400, 404, 413},
    ("POST", "/v1/messages/count_tokens"): {200, 400, 404, 413},
    ("POST", "/v1/embeddings"): {200, 400, 404, 413},
    ("POST", "/tokenize"): {200, 400, 404, 413},
    ("POST", "/detokenize"): {200, 400, 404, 413},
    ("GET", "/v1/models"): {200, 400},
    ("GET", "/v1/models/{model}"): {200, 404},
    ("GET", "/health"): {200},
    ("GET", "/metrics"): {200},
}
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
INTRICATE = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens")
LIMITED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
MALFORMED = 400  # by uvicorn, before the gateway sees it

models = st.sampled_from([MODEL, MODEL, BARE])
short = st.integers(1, 3)


@pytest.fixture(scope="module")
def url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway in front of a model that talks nonsense fast, with a real tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "nonsense"
    config = LlamaConfig(
        vocab_size=json.loads((smollm2 / "config.json").read_text())["vocab_size"],
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if name not in ("config.json", "generation_config.json") and (smollm2 / name).exists():
            shutil.copy(smollm2 / name, folder / name)
    assert Tokenizer.load(folder) is not None
    with serving(WholeModel(folder)) as url:
        yield url


def at_a_model(case: Any, model: str, tokens: int) -> None:
    """Most cases would name a model that nobody has, or ask for a million tokens."""
    if isinstance(case.body, dict):
        if "model" in case.body and isinstance(case.body["model"], str):
            case.body["model"] = model
        for name in LIMITS:
            if type(case.body.get(name)) is int and case.body[name] > tokens:
                case.body[name] = tokens
        if type(case.body.get("n")) is int and case.body["n"] > tokens:
            case.body["n"] = tokens
        if tokens == 1 and case.operation.path in INTRICATE:
            # Most of what the schemas allow does not fit together; some cases are to come to an answer.
            for name in ("response_format", "tools", "tool_choice", "output_config", "text"):
                case.body.pop(name, None)
            for name in {"messages", "input"} & set(case.body):
                case.body[name] = [{"role": "user", "content": "hi"}]
        limit = "max_output_tokens" if case.operation.path == "/v1/responses" else "max_tokens"
        if case.operation.path in LIMITED and all(case.body.get(name) is None for name in LIMITS):
            case.body[limit] = tokens
    if case.path_parameters.get("model") is not None and tokens == 1:
        case.path_parameters["model"] = model


@pytest.mark.model
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize(("method", "path"), EXPECTED)
def test_no_request_brings_out_an_error_of_the_server(url: str, method: str, path: str, mode: GenerationMode) -> None:
    operation = schemathesis.openapi.from_url(f"{url}/openapi.json")[path][method]
    if mode is GenerationMode.NEGATIVE and not operation.body:
        return  # nothing in it could be wrong
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=CASES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), models, short)
    def check(case: Any, model: str, tokens: int) -> None:
        at_a_model(case, model, tokens)
        response = case.call()
        statuses[response.status_code] += 1
        assert response.status_code in EXPECTED[method, path] | {MALFORMED}, (response.text, case.body)
        if response.status_code >= 400 and response.headers.get("content-type") == "application/json":
            assert response.json()["error"]["message"]
        case.validate_response(
            response, checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
        )

    check()
    print(method, path, dict(statuses))
    if mode is GenerationMode.POSITIVE:
        assert statuses[200], statuses


def test_every_operation_is_tried(url: str) -> None:
    operations = schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()
    assert {(found.ok().method.upper(), found.ok().path) for found in operations} == set(EXPECTED)
