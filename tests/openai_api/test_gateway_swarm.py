"""`swarm-gateway` in front of a real swarm: a directory and servers in processes of their own."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from openai_api.http.server import listen
from tests.e2e.programs import LIMIT, Program, Swarm

MODEL = "smollm2-135m"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def wait_for_status(url: str, model: str, complete: bool) -> dict[str, Any]:
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit:
        found: list[dict[str, Any]] = httpx.get(f"{url}/health").json()["models"]
        for each in found:
            if each["id"] == model and each["complete"] == complete:
                return each
    raise AssertionError(f"{model} did not become complete={complete}: {found}")


@pytest.mark.model
def test_a_question_is_answered_by_two_servers_through_the_openai_client(smollm2: Path, home: Path) -> None:
    with Swarm(home) as swarm:
        gateway = swarm.start("swarm-gateway", "--port", "0")
        url = gateway.wait_line("ready:").split()[-1]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        assert httpx.get(f"{url}/v1/models").json()["data"] == []  # it starts before any server
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=LIMIT)
        options = ["--dtype", "float32", "--model-name", MODEL, "--kv-tokens", "4096"]
        _, second = swarm.serve(smollm2, "0:15", "15:30", options=options)
        wait_for_status(url, MODEL, complete=True)

        answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
        assert answer.choices[0].message.content == "The capital of France is Paris."
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None and answer.usage.completion_tokens == 8

        stream = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == "The capital of France is Paris."

        text = "The capital of France is Paris"
        scored = client.completions.create(model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=0).choices[0]
        assert scored.logprobs is not None and scored.logprobs.token_logprobs is not None
        assert -1 < scored.logprobs.token_logprobs[-1] < 0

        with pytest.raises(openai.BadRequestError) as too_long:
            client.completions.create(model=MODEL, prompt="a " * 9000, max_tokens=1)
        assert too_long.value.code == "context_length_exceeded"

        # Both servers have their KV caches back: another session of this size would not fit beside one left open.
        for _ in range(2):
            left = client.completions.create(model=MODEL, prompt="Once", max_tokens=4000, stream=True)
            next(left)
            left.close()
        assert client.completions.create(model=MODEL, prompt="Once", max_tokens=4000, stop=["e", "a"]).choices

        second.process.terminate()
        assert second.wait_exit() == 0, second.errors
        assert wait_for_status(url, MODEL, complete=False)["missing"] == ["15:30"]
        with pytest.raises(openai.InternalServerError, match="15:30") as incomplete:
            client.chat.completions.create(model=MODEL, messages=QUESTION)
        assert incomplete.value.status_code == 503

        client.close()
        gateway.process.terminate()
        assert gateway.wait_exit() == 0, gateway.errors
        assert [line for name, line in gateway.lines if name == "out"] == [f"ready: {url}"]


def test_the_gateway_refuses_to_start_with_one_line(home: Path) -> None:
    def refused(*arguments: str) -> tuple[int, str]:
        program = Program("swarm-gateway", *arguments, SWARM_HOME=str(home))
        code = program.wait_exit()
        assert not [line for name, line in program.lines if name == "out"]
        (line,) = program.errors.splitlines()
        return code, line

    code, line = refused("--host", "0.0.0.0")
    assert code == 2 and "API key" in line and "0.0.0.0" in line
    code, line = refused()
    assert code == 2 and "no join token" in line
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, line = refused("--join", "swarm1:x", "--port", str(port))
        assert code == 1 and f"port {port} on 127.0.0.1 is in use" in line
    code, line = refused("--join", "swarm1:x", "--host", "192.0.2.1", "--api-key", "k")
    assert code == 1 and "192.0.2.1" in line
    code, line = refused("--join", "no token", "--port", "0")
    assert code == 1 and "join token" in line


def test_with_a_key_the_gateway_serves_every_interface(home: Path) -> None:
    with Swarm(home) as swarm:
        gateway = swarm.start("swarm-gateway", "--port", "0", "--host", "0.0.0.0", "--api-key", "s3cret")
        url = gateway.wait_line("ready:").split()[-1]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"authorization": "Bearer s3cret"}
        assert httpx.get(f"{url}/v1/models", headers=headers).json() == {"object": "list", "data": []}
        gateway.process.terminate()
        assert gateway.wait_exit() == 0, gateway.errors
