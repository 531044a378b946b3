"""Who may use the gateway."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import openai
import pytest

from openai_api.http.auth import host_of, is_loopback
from tests.openai_api.engine import MODEL, WholeModel


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST", "a.localhost", "::1", "[::1]"])
def test_these_are_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "127.0.0.1.example.com", "", "localhost."]
)
def test_these_are_not(host: str) -> None:
    assert not is_loopback(host)


def test_the_host_of_a_header() -> None:
    assert [host_of(header) for header in ("a:80", "a", "[::1]:80", "[::1]", "")] == ["a", "a", "[::1]", "[::1]", ""]


@pytest.mark.model
def test_without_a_key_only_requests_to_this_machine_are_answered(url: str, engine: WholeModel) -> None:
    port = url.rpartition(":")[2]
    for name in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert httpx.get(f"{url}/v1/models", headers={"host": name}).status_code == 200
    refused = httpx.get(f"{url}/v1/models", headers={"host": "rebound.example"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_host")


@pytest.mark.model
def test_with_a_key_only_those_who_show_it_are_answered(served: Callable[..., str], engine: WholeModel) -> None:
    url = served(engine, api_key="s3cret")
    ask = {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret") as right:
        assert right.completions.create(**ask).choices
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as wrong,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        wrong.completions.create(**ask)
    assert raised.value.code == "invalid_api_key"
    assert raised.value.response.headers["www-authenticate"] == "Bearer"
    for header in (
        {},
        {"authorization": "s3cret"},
        {"authorization": "Basic s3cret"},
        {"authorization": "Bearer s3cret2"},
    ):
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            assert httpx.get(url + path, headers=header).status_code == 401
    assert httpx.get(f"{url}/v1/models", headers={"authorization": "bearer s3cret", "host": "any"}).status_code == 200


@pytest.mark.model
def test_with_a_key_a_monitor_learns_only_that_the_gateway_lives(
    served: Callable[..., str], engine: WholeModel
) -> None:
    url = served(engine, api_key="s3cret")
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    known = httpx.get(f"{url}/health", headers={"authorization": "Bearer s3cret"}).json()
    assert MODEL in {model["id"] for model in known["models"]}
    assert httpx.get(url).status_code == 200
