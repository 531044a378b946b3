"""What Lighthouse looks at: what the page says of itself, what it loads, and how it appears."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from openai_api.console.console import Console
from openai_api.http import static_site
from tests.openai_api.conftest import serving
from tests.ui.chatting import LIMIT, answers, ask
from tests.ui.conftest import OpenPage
from tests.ui.scripted import Scripted

SHIFTS = """
  window.shifts = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
  }).observe({ type: "layout-shift", buffered: true });
"""
GOOD = 0.1  # of cumulative layout shift, by https://web.dev/articles/cls
Accessible = Callable[[Page], None]


@pytest.fixture(scope="module")
def scripted(smollm2: Path) -> Scripted:
    return Scripted(smollm2)


@pytest.fixture(scope="module")
def url(scripted: Scripted) -> Iterator[str]:
    with serving(scripted, site=static_site.load(), console=Console(scripted)) as url:
        yield url


def ready(page: Page) -> None:
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible(timeout=LIMIT)


def test_the_page_says_what_it_is(url: str, open_page: OpenPage) -> None:
    page = open_page(url)
    ready(page)
    assert page.title() == "Swarm chat"
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator('meta[name="description"]').get_attribute("content")
    assert page.locator("meta[charset]").get_attribute("charset") == "utf-8"
    viewport = page.locator('meta[name="viewport"]').get_attribute("content") or ""
    assert "width=device-width" in viewport and "user-scalable" not in viewport and "maximum-scale" not in viewport
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    icon = page.locator('link[rel="icon"]').get_attribute("href")
    assert icon and page.request.get(f"{url}{icon}").ok
    assert page.evaluate("document.doctype.name") == "html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(url: str, open_page: OpenPage, accessible: Accessible, scheme: str) -> None:
    page = open_page(url, color_scheme=scheme)
    ready(page)
    accessible(page)
    page.get_by_role("button", name="Page settings").click()
    accessible(page)


@pytest.mark.parametrize("width", [1280, 375])
def test_nothing_moves_while_it_loads(url: str, browser: object, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 720})  # type: ignore[attr-defined]
    context.add_init_script(SHIFTS)
    page = context.new_page()
    page.goto(url)
    ready(page)
    assert page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(shifts))))") < GOOD
    context.close()


def test_a_second_visit_loads_the_document_only(url: str, open_page: OpenPage) -> None:
    page = open_page(url)
    ready(page)
    page.goto("about:blank")
    page.goto(url)
    ready(page)
    loaded = page.evaluate(
        """performance.getEntriesByType("resource").map((each) => [new URL(each.name).pathname, each.transferSize])"""
    )
    hashed = [size for path, size in loaded if path.startswith("/_next/static/")]
    assert hashed and not any(hashed)


def test_no_word_waits_for_the_next_one(url: str, scripted: Scripted, open_page: OpenPage) -> None:
    """Words that come close together are drawn together, and soon: here nothing comes after them."""
    page = open_page(url)
    ready(page)
    ask(page, "Say something.")
    words = answers(page).locator(".words")
    said = ""
    for more in (["One"], [" two", " three"], [" four", " five", " six", " seven"], [" eight"]):
        scripted.say(*more)
        said += "".join(more)
        expect(words).to_have_text(said)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    scripted.say("")
    expect(page.get_by_role("button", name="Answer again")).to_be_attached()


def test_words_are_drawn_before_the_page_knows_how_to_draw_markdown(
    url: str, scripted: Scripted, open_page: OpenPage
) -> None:
    page = open_page(url)
    ready(page)
    held: list[Route] = []
    page.route("**/_next/static/**", lambda route: held.append(route))
    ask(page, "Say something.")
    scripted.say("One *two*")
    expect(answers(page).locator(".words")).to_have_text("One *two*")
    assert held
    for route in held:
        route.continue_()
    page.unroute("**/_next/static/**")
    expect(answers(page).locator(".words em")).to_have_text("two")
    scripted.say("")
    expect(page.get_by_role("button", name="Answer again")).to_be_attached()
