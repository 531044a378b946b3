"""Requests made from the gateway's own OpenAPI document, as it says and in breach of it: every answer is as written
down, none comes to a status of 5xx, and what the document forbids is refused.

Two ways: requests at random, so aimed that many come to an answer, and schemathesis' own systematic ones, each of which
breaks one rule of the document. Of its checks, those left out:

* `positive_data_acceptance`: a schema cannot say everything, e.g. which models there are and which fields go together.
* `use_after_free`, `ensure_resource_availability`, `object_level_authorization`: nothing is created or deleted.
* `max_response_time`: time decides no test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
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
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from openai_api.protocol.schemas import MAX_CHOICES
from swarm.tokenizer import TOKENIZER_FILES, Tokenizer
from tests.openai_api.conftest import serving
from tests.openai_api.engine import BARE, MODEL, WholeModel

OF_ANSWERS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OF_BREACHES = [negative_data_rejection, missing_required_header]
SYSTEMATIC = [*(check.__name__ for check in OF_ANSWERS + OF_BREACHES), "unsupported_method", "allow_header_conformance"]
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
    ("GET", "/tokenizer_info"): {200, 400, 404},
    ("GET", "/v1/models"): {200, 400},
    ("GET", "/v1/models/{model}"): {200, 404},
    ("GET", "/health"): {200},
    ("GET", "/metrics"): {200},
}
LIMIT = 300.0  # s for a run that takes some twenty
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
INTRICATE = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens")
LIMITED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
MALFORMED = 400  # by uvicorn, before the gateway sees it

models = st.sampled_from([MODEL, MODEL, BARE])
short = st.integers(1, 3)


@pytest.fixture(scope="module")
def engine(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> WholeModel:
    """A model that talks nonsense fast, with a real tokenizer."""
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
    return WholeModel(folder)


@pytest.fixture(scope="module")
def url(engine: WholeModel) -> Iterator[str]:
    with serving(engine) as url:
        yield url


def at_a_model(case: Any, model: str, tokens: int, mode: GenerationMode) -> None:
    """Most cases would name a model that nobody has, or ask for a million tokens. What is wrong with them stays so."""
    if isinstance(case.body, dict):
        named = case.body.get("model")
        if isinstance(named, str) and 0 < len(named) <= 256:
            case.body["model"] = model
        for name, most in (*((limit, (1 << 31) - 1) for limit in LIMITS), ("n", MAX_CHOICES)):
            if type(case.body.get(name)) is int and tokens < case.body[name] <= most:
                case.body[name] = tokens
        if tokens == 1 and case.operation.path in INTRICATE and mode is GenerationMode.POSITIVE:
            # Most of what the schemas allow does not fit together; some cases are to come to an answer.
            for name in ("response_format", "tools", "tool_choice", "output_config", "text"):
                case.body.pop(name, None)
            for name in {"messages", "input"} & set(case.body):
                case.body[name] = [{"role": "user", "content": "hi"}]
        if tokens == 1 and case.operation.path == "/tokenize" and mode is GenerationMode.POSITIVE:
            case.body = {"model": model, "prompt": "hi"}  # not beside messages
        limit = "max_output_tokens" if case.operation.path == "/v1/responses" else "max_tokens"
        if case.operation.path in LIMITED and all(case.body.get(name) is None for name in LIMITS):
            case.body[limit] = tokens
    for place in (case.path_parameters, case.query):
        if place.get("model") is not None and tokens == 1 and mode is GenerationMode.POSITIVE:
            place["model"] = MODEL


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
        at_a_model(case, model, tokens, mode)
        response = case.call()
        statuses[response.status_code] += 1
        assert response.status_code in EXPECTED[method, path] | {MALFORMED}, (response.text, case.body)
        if response.status_code >= 400 and response.headers.get("content-type") == "application/json":
            assert response.json()["error"]["message"]
        if response.status_code != MALFORMED or "x-request-id" in response.headers:
            case.validate_response(response, checks=OF_ANSWERS + OF_BREACHES)

    check()
    print(method, path, dict(statuses))
    if mode is GenerationMode.POSITIVE:
        assert statuses[200], statuses


def test_every_operation_is_tried(url: str) -> None:
    operations = schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()
    assert {(found.ok().method.upper(), found.ok().path) for found in operations} == set(EXPECTED)


def tried_systematically(folder: Path, url: str, checks: list[str], *options: str) -> None:
    """Let schemathesis break each rule of the document once; it says what is wrong, and how to do it again."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--phases", "coverage"]
    command += ["--checks", ",".join(checks), "--generation-deterministic", "--no-color", "--output-truncate", "true"]
    done = subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout
    assert f"Tested: {len(EXPECTED)}" in done.stdout


@pytest.mark.model
def test_every_rule_of_the_document_is_kept(url: str, tmp_path: Path) -> None:
    tried_systematically(tmp_path, url, SYSTEMATIC)


@pytest.mark.model
def test_where_the_document_asks_for_a_key_nothing_goes_without(engine: WholeModel, tmp_path: Path) -> None:
    with serving(engine, api_key="k") as url:
        tried_systematically(tmp_path, url, ["ignored_auth"], "--header", "Authorization: Bearer k")
