from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from openai_api.app import AppSettings, create_app
from openai_api.gateway import Gateway
from openai_api.http.server import HttpServer, listen, url_of
from openai_api.routes.state import GatewayState
from tests.openai_api.engine import AGREES, WholeModel

LIMIT = 60.0  # s, for what takes a moment


@contextmanager
def serving(
    engine: Any, options_for: Callable[[str], dict[str, Any]] | None = None, checks: int = 0, **options: Any
) -> Iterator[str]:
    """The gateway over real HTTP, in a thread; gives its URL. `options_for`: further options, by that URL."""
    stop, ready = threading.Event(), threading.Event()
    listener = listen("127.0.0.1", 0)
    if options_for is not None:
        options |= options_for(url_of("127.0.0.1", listener))

    async def serve() -> None:
        closing = asyncio.Event()
        settings = {name: options.pop(name) for name in AppSettings.__dataclass_fields__ if name in options}
        state = GatewayState.make(Gateway(engine, checks=checks), closing=closing, **options)
        app = create_app(state, AppSettings(**settings))
        await HttpServer(app, stop.is_set, closing, ready.set).serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    with listener:
        thread.start()
        try:
            assert ready.wait(LIMIT)
            yield url_of("127.0.0.1", listener)
        finally:
            stop.set()
            thread.join(LIMIT)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def whole_model(smollm2: Path) -> WholeModel:
    return WholeModel(smollm2)


@pytest.fixture(scope="session")
def url(whole_model: WholeModel) -> Iterator[str]:
    with serving(whole_model) as url:
        yield url


@pytest.fixture
def engine(whole_model: WholeModel) -> Iterator[WholeModel]:
    """The engine behind `url`, with nothing running and nothing wrong with it when the test begins."""
    assert whole_model.idle.wait(LIMIT)
    whole_model.asked.clear()
    whole_model.checked.clear()
    whole_model.given = 0
    yield whole_model
    whole_model.trouble, whole_model.trouble_after, whole_model.notices = None, 0, []
    whole_model.verdict = AGREES


@pytest.fixture
def client(url: str, engine: WholeModel) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    """Starts further gateways, with options of their own."""
    with ExitStack() as stack:
        yield lambda engine, **options: stack.enter_context(serving(engine, **options))
