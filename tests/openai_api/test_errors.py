"""Whatever goes wrong is said in OpenAI's form, so that its client raises what people expect."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from swarm import BadRequest, Overloaded, SessionFailed, SwarmError, Unavailable, UnknownModel
from tests.openai_api.engine import MODEL, PARTIAL, WholeModel

pytestmark = pytest.mark.model
QUESTION: Any = [{"role": "user", "content": "Hi"}]
BODY = {"model": MODEL, "messages": QUESTION, "max_tokens": 4, "temperature": 0}
TOO_LONG = "context_length_exceeded"
JSON = {"content-type": "application/json"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["x-request-id"].startswith("req_")
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/nowhere", None, 404, "unknown_url"),
        ("GET", "/v1/chat/completions", None, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", None, 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_json"),
        ("POST", "/v1/chat/completions", b"", 400, "invalid_json"),
        ("POST", "/v1/completions", b"[]", 400, "invalid_json"),
        ("POST", "/v1/completions", b'{"model": "\xff"}', 400, "invalid_json"),
        ("POST", "/v1/completions", b"[" * 100_000, 400, "invalid_json"),
        ("POST", "/v1/completions", b'{"model": "m"}', 400, "missing_required_parameter"),
        ("POST", "/v1/completions", b'{"model": "m", "prompt": "p", "\\ud800": 1}', 400, "invalid_json"),
        ("POST", "/v1/completions", b'{"model": "\\ud800", "prompt": "p"}', 400, "invalid_value"),
        ("POST", "/v1/chat/completions", json.dumps(BODY | {"functions": [1]}).encode(), 400, "unsupported_parameter"),
        ("POST", "/v1/chat/completions", json.dumps(BODY | {"model": "x"}).encode(), 404, "model_not_found"),
        ("POST", "/v1/chat/completions", json.dumps(BODY | {"max_tokens": 8190}).encode(), 400, TOO_LONG),
        ("POST", "/v1/completions", json.dumps({"model": MODEL, "prompt": ""}).encode(), 400, "empty_prompt"),
        ("POST", "/v1/completions", json.dumps({"model": MODEL, "prompt": []}).encode(), 400, "empty_prompt"),
        ("POST", "/v1/completions", json.dumps({"model": MODEL, "prompt": ["a"] * 129}).encode(), 400, "invalid_value"),
        ("POST", "/v1/completions", b" " * (9 << 20), 413, "body_too_large"),
    ],
)  # fmt: skip
def test_refusals(
    url: str, engine: WholeModel, method: str, path: str, content: bytes | None, status: int, code: str
) -> None:
    response = httpx.request(method, url + path, content=content, headers=JSON)
    error = error_of(response, status)
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert not engine.asked


def test_a_body_that_does_not_say_that_it_is_json_is_refused(url: str, engine: WholeModel) -> None:
    """A page of another site can send such a request without asking; one with this content type it cannot."""
    response = httpx.post(
        f"{url}/v1/chat/completions", content=json.dumps(BODY), headers={"content-type": "text/plain"}
    )
    assert "Content-Type: application/json" in error_of(response, 400)["message"]
    preflight = httpx.options(f"{url}/v1/chat/completions", headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in preflight.headers


TROUBLE: list[tuple[Exception, type[openai.APIStatusError], int, str]] = [
    (BadRequest("too much"), openai.BadRequestError, 400, "invalid_value"),
    (UnknownModel("gone by now"), openai.NotFoundError, 404, "model_not_found"),
    (Overloaded("all servers are full", 2.5), openai.RateLimitError, 429, "overloaded"),
    (Unavailable("blocks 20:30 are gone", ((20, 30),)), openai.InternalServerError, 503, "model_incomplete"),
    (SessionFailed("a server broke"), openai.InternalServerError, 502, "session_failed"),
    (SwarmError("secret detail"), openai.InternalServerError, 500, "internal_error"),
    (RuntimeError("secret detail"), openai.InternalServerError, 500, "internal_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("trouble", "kind", "status", "code"), TROUBLE)
def test_trouble_before_the_first_token_has_a_status(
    client: openai.OpenAI,
    engine: WholeModel,
    stream: bool,
    trouble: Exception,
    kind: type[openai.APIStatusError],
    status: int,
    code: str,
) -> None:
    engine.trouble, engine.notices = trouble, ["waiting for a server"]
    with pytest.raises(kind) as raised:
        client.chat.completions.create(model=MODEL, messages=QUESTION, stream=stream)
    assert (raised.value.status_code, raised.value.code) == (status, code)
    if status == 500:
        assert "secret" not in str(raised.value)
        assert raised.value.request_id is not None and raised.value.request_id in str(raised.value)
    else:
        assert str(trouble) in str(raised.value)
    assert raised.value.response.headers.get("retry-after") == ({429: "3", 503: "5"}.get(status))


@pytest.mark.parametrize(("trouble", "code"), [(each[0], each[3]) for each in TROUBLE])
def test_trouble_later_ends_the_stream_with_an_error(
    client: openai.OpenAI, url: str, engine: WholeModel, trouble: Exception, code: str
) -> None:
    engine.trouble, engine.trouble_after = trouble, 2
    seen = ""
    with pytest.raises(openai.APIError) as raised:
        for chunk in client.completions.create(model=MODEL, prompt="One two three", temperature=0, stream=True):
            seen += chunk.choices[0].text
    assert seen
    assert raised.value.code == code
    assert "secret" not in str(raised.value)

    body = {"model": MODEL, "prompt": "One two three", "stream": True}
    events = httpx.post(f"{url}/v1/completions", json=body, timeout=60).text.split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == code
    assert events[-1] == ""
    assert "[DONE]" not in "".join(events)


def test_trouble_of_one_choice_ends_the_others(client: openai.OpenAI, engine: WholeModel) -> None:
    engine.trouble, engine.trouble_after = SessionFailed("a server broke"), 1
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model=MODEL, prompt="One two three", n=3, max_tokens=500)
    assert engine.idle.wait(30)


def test_blocks_that_nobody_serves_are_named(client: openai.OpenAI, engine: WholeModel) -> None:
    with pytest.raises(openai.InternalServerError, match="20:30") as raised:
        client.chat.completions.create(model=PARTIAL, messages=QUESTION)
    assert raised.value.status_code == 503
    assert not engine.asked


def test_a_token_outside_the_vocabulary_is_the_callers_mistake(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(model=MODEL, prompt=[5, 1_000_000])


def test_a_smaller_limit_to_bodies(served: Callable[..., str], engine: WholeModel) -> None:
    url = served(engine, body_limit=1000)
    whole = httpx.post(f"{url}/v1/completions", json={"model": MODEL, "prompt": "p" * 1000})
    assert "1000 bytes" in error_of(whole, 413)["message"]
    parts = httpx.post(f"{url}/v1/completions", content=(b"x" * 100 for _ in range(50)), headers=JSON)
    error_of(parts, 413)
    assert httpx.post(f"{url}/v1/completions", json={"model": MODEL, "prompt": "p", "max_tokens": 1}).status_code == 200
