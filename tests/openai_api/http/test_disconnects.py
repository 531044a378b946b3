"""Nobody waits for the answer any more: then nothing goes on computing it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import openai
import pytest

from openai_api.app import create_app
from openai_api.gateway import Gateway
from openai_api.http.server import HttpServer, listen, url_of
from openai_api.routes.state import GatewayState
from tests.openai_api.conftest import LIMIT
from tests.openai_api.engine import MODEL, WholeModel

pytestmark = pytest.mark.model
LONG: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me a long story."}],
    "max_tokens": 4000,
    "ignore_eos": True,
}


def test_leaving_a_stream_ends_its_generation(url: str, engine: WholeModel) -> None:
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=LONG | {"stream": True, "n": 2}, timeout=60
    ) as response:
        words = response.iter_raw()
        next(words)
        assert engine.running == 2
    assert engine.idle.wait(LIMIT)
    assert engine.given < 200


def test_leaving_before_an_answer_that_is_not_streamed_ends_its_generation(url: str, engine: WholeModel) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/chat/completions", json=LONG, timeout=httpx.Timeout(60, read=2))
    assert engine.idle.wait(LIMIT)
    assert 0 < engine.given < 400


def test_leaving_before_the_first_token_ends_its_generation(url: str, engine: WholeModel) -> None:
    engine.hold.clear()
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=LONG | {"stream": True}, timeout=httpx.Timeout(60, read=1))
        assert engine.idle.wait(LIMIT)
        assert engine.given == 0
    finally:
        engine.hold.set()


def test_the_async_client_may_break_off(url: str, engine: WholeModel) -> None:
    async def first_words() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.completions.create(model=MODEL, prompt="Once", max_tokens=4000, stream=True)
            async for _ in stream:
                break
            await stream.close()

    asyncio.run(first_words())
    assert engine.idle.wait(LIMIT)


def test_stopping_the_gateway_ends_open_streams_with_an_error(engine: WholeModel) -> None:
    stop, ready = threading.Event(), threading.Event()
    with listen("127.0.0.1", 0) as listener:

        async def serve() -> None:
            closing = asyncio.Event()
            app = create_app(GatewayState.make(Gateway(engine), closing=closing))
            await HttpServer(app, stop.is_set, closing, ready.set).serve(sockets=[listener])

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        assert ready.wait(LIMIT)
        client = openai.OpenAI(base_url=f"{url_of('127.0.0.1', listener)}/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model=MODEL, prompt="Once", max_tokens=4000, stream=True)
        next(stream)
        stop.set()
        began = time.monotonic()
        with pytest.raises(openai.APIError) as raised:
            for _ in stream:
                continue
        assert raised.value.code == "shutting_down"
        thread.join(LIMIT)
        assert not thread.is_alive()
        assert time.monotonic() - began < 10
    assert engine.idle.wait(LIMIT)
