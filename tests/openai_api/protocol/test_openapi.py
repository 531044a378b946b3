"""`/health`, `/metrics` and the description of the API."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from openai_api.protocol.openapi import STATUSES
from tests.openai_api.engine import MODEL, WholeModel

pytestmark = pytest.mark.model


def test_health_says_what_is_missing(url: str, engine: WholeModel) -> None:
    response = httpx.get(f"{url}/health")
    assert response.status_code == 200
    body = response.json()
    assert (body["status"], body["complete"]) == ("ok", True)
    assert body["models"][-1] == {"id": "partial", "complete": False, "blocks": 30, "missing": ["20:30"], "servers": 1}


def test_metrics_count_requests_tokens_and_times(served: Callable[..., str], engine: WholeModel) -> None:
    url = served(engine)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        usage = client.completions.create(model=MODEL, prompt="One two", max_tokens=3, n=2).usage
    assert usage is not None
    for path in ("/a", "/b"):
        httpx.get(url + path)
    response = httpx.get(f"{url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["swarm_gateway_requests_total", "/v1/completions", "200", "POST"] == 1
    assert samples["swarm_gateway_requests_total", "404", "GET", "other"] == 2
    assert samples["swarm_gateway_prompt_tokens_total", MODEL] == usage.prompt_tokens
    assert samples["swarm_gateway_generated_tokens_total", MODEL] == usage.completion_tokens == 6
    assert samples["swarm_gateway_time_to_first_token_seconds_count", MODEL] == 2
    assert samples["swarm_gateway_inter_token_seconds_count", MODEL] == 4
    assert samples["swarm_gateway_active_streams",] == 0
    assert samples["swarm_servers", "ready", MODEL] == 1
    assert samples["swarm_model_complete", "partial"] == 0


def test_the_api_describes_itself(url: str, engine: WholeModel) -> None:
    description = httpx.get(f"{url}/openapi.json").json()
    assert {"/v1/models", "/v1/completions", "/v1/chat/completions"} <= set(description["paths"])
    documented = set(description["paths"]["/v1/completions"]["post"]["responses"])
    assert documented == {"200", *map(str, STATUSES), "4XX", "5XX"}
    schema = description["components"]["schemas"]["ChatRequest"]
    assert schema["additionalProperties"] is False
    assert "messages" in schema["required"]
