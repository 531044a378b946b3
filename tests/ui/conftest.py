"""A real browser on the real page of a real gateway. Left out, with the reason, where one of them is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest

from openai_api.http.static_site import STATIC
from tests.e2e.programs import Swarm

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra 'test')")

playwright.expect.set_options(timeout=30_000)

ROOT = Path(__file__).parents[2]
AXE = ROOT / "chatbot-ui" / "node_modules" / "axe-core" / "axe.min.js"
SHOTS = Path(os.environ.get("SWARM_UI_SHOTS", Path(__file__).parent / "shots"))
MODEL = "smollm2-135m"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(item.path).parent == Path(__file__).parent]
    reason = _lacking()
    for item in here:
        item.add_marker(pytest.mark.model)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _lacking() -> str:
    if _chromium() is None:
        return "no Chromium is here (Debian: apt-get install chromium)"
    if not (STATIC / "app" / "index.html").is_file():
        return "the chat page is not built (python bootstrap.py install, with Node.js 20 or newer)"
    return ""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ui") / "home"


@pytest.fixture(scope="session")
def swarm(smollm2: Path, home: Path) -> Iterator[Swarm]:
    """A head and a tail. Tests that kill servers put others in their place."""
    with pytest.MonkeyPatch.context() as patch, Swarm(home) as swarm:
        patch.setenv("SWARM_HOME", str(home))
        serve(swarm, smollm2, head="0:15", tail="15:30")
        yield swarm


def serve(swarm: Swarm, model: Path, **spans: str) -> None:
    """Start a server of each name with its span."""
    for name, span in spans.items():
        swarm.serve(model, span, options=["--model-name", MODEL, "--name", name, "--kv-tokens", "8192"])


@pytest.fixture(scope="session")
def url(swarm: Swarm) -> str:
    return swarm.gateway()


@pytest.fixture(scope="session")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_chromium(), args=FLAGS)
        yield browser
        browser.close()


OpenPage = Callable[..., playwright.Page]


@pytest.fixture
def open_page(browser: playwright.Browser) -> Iterator[OpenPage]:
    """Opens pages, each in a profile of its own. Afterwards: none said an error, or asked another host for anything.

    `expected`: what a browser may note all the same of requests that are to fail.
    """
    said: list[str] = []
    contexts = []

    def open_page(url: str, elsewhere: str = "", expected: tuple[str, ...] = (), **options: object) -> playwright.Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if _matters(message, expected) else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request",
            lambda request: said.append(f"asked {request.url}") if not _own(request.url, url, elsewhere) else None,
        )
        page.goto(url)
        page.locator("textarea").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def _matters(message: playwright.ConsoleMessage, expected: tuple[str, ...]) -> bool:
    """A browser notes each refused request; that a gateway asks for its key is no error of the page."""
    noted = any(word in message.text for word in ("status of 401", *expected))
    return message.type in ("error", "warning") and not noted


def _own(asked: str, url: str, elsewhere: str) -> bool:
    """`elsewhere`: another host that the page may lead to."""
    others = (f"{elsewhere}/",) if elsewhere else ()
    return asked.startswith((f"{urljoin(url, '/')}", "data:", "blob:", *others))


@pytest.fixture
def shot() -> Callable[[playwright.Page, str], None]:
    """Keeps a picture of the page, for people to look at."""
    SHOTS.mkdir(parents=True, exist_ok=True)

    def shot(page: playwright.Page, name: str) -> None:
        page.screenshot(path=SHOTS / f"{name}.png")

    return shot


@pytest.fixture
def accessible() -> Callable[[playwright.Page], None]:
    """Lets axe look for whatever keeps people out."""
    if not AXE.is_file():
        pytest.skip("axe-core is not installed (npm ci in chatbot-ui)")
    source = AXE.read_text(encoding="utf-8")

    def accessible(page: playwright.Page) -> None:
        page.evaluate(source)
        result = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        found = [
            f"{violation['id']}: {violation['help']} at {[node['html'][:160] for node in violation['nodes']]}"
            for violation in result["violations"]
        ]
        assert found == []

    return accessible
