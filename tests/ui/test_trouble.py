"""What the page says when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from openai_api.console.console import Console
from openai_api.http import static_site
from openai_api.http.concurrency import RequestQueue
from swarm import Overloaded, SessionFailed, Unavailable
from tests.e2e.programs import Swarm
from tests.openai_api.conftest import serving
from tests.ui.chatting import LIMIT, answers, ask, growing
from tests.ui.conftest import OpenPage
from tests.ui.scripted import Scripted

Shot = Callable[[Page, str], None]
STATUSES = ("429", "502", "503")


@pytest.fixture
def scripted(smollm2: Path) -> Scripted:
    return Scripted(smollm2)


@pytest.fixture
def url(scripted: Scripted) -> Iterator[str]:
    with serving(
        scripted, site=static_site.load(), console=Console(scripted), queue=RequestQueue(at_once=1, waiting=0)
    ) as url:
        yield url


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Overloaded("all servers are full", 2.0), "all servers are full"),
        (Unavailable("blocks 15:30 are gone", ((15, 30),)), "blocks 15:30 are gone"),
        (SessionFailed("do not trust this answer"), "do not trust this answer"),
    ],
)
def test_an_answer_that_fails_says_why_and_can_be_asked_for_again(
    url: str, scripted: Scripted, open_page: OpenPage, error: Exception, words: str
) -> None:
    page = open_page(url, expected=STATUSES)
    ask(page, "Hello?")
    scripted.fail(error)  # type: ignore[arg-type]
    alert = answers(page).last.get_by_role("alert")
    expect(alert).to_contain_text(words)
    answers(page).last.get_by_role("button", name="Answer again").click()
    scripted.say("Here", " I am.")
    expect(answers(page).last.locator(".words")).to_have_text("Here I am.")
    scripted.fail(error)  # type: ignore[arg-type]
    expect(alert).to_contain_text(words)
    expect(answers(page).last.locator(".words")).to_have_text("Here I am.")  # what was said stays


def test_a_gateway_that_has_no_room_says_so(url: str, scripted: Scripted, open_page: OpenPage, shot: Shot) -> None:
    page, other = open_page(url, expected=STATUSES), open_page(url, expected=STATUSES)
    ask(page, "Hello?")
    scripted.say("One")
    growing(page)
    ask(other, "And me?")
    expect(answers(other).get_by_role("alert")).to_contain_text("too many requests")
    shot(other, "trouble-full")
    scripted.say("")
    expect(page.get_by_role("button", name="Answer again")).to_be_attached(timeout=LIMIT)
    other.get_by_role("button", name="Answer again").click()
    scripted.say("Yes", "")
    expect(answers(other).locator(".words")).to_have_text("Yes")


def test_without_servers_the_page_says_what_is_missing(
    url: str, scripted: Scripted, open_page: OpenPage, shot: Shot
) -> None:
    (model,) = scripted.served
    scripted.served = []
    page = open_page(url)
    expect(page.get_by_role("heading", name="Waiting for the first server")).to_be_visible(timeout=LIMIT)
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    shot(page, "trouble-no-servers")
    scripted.served = [type(model)(model.name, model.blocks, model.context_length, model.servers, ((15, 30),))]
    expect(page.get_by_role("heading", name="Some blocks have no server yet")).to_be_visible(timeout=LIMIT)
    scripted.served = [model]
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible(timeout=LIMIT)


def test_a_gateway_that_goes_away_in_mid_answer_is_said_and_comes_back(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_page: OpenPage, shot: Shot
) -> None:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    with Swarm(tmp_path / "home") as swarm:
        swarm.serve(smollm2, "0:30", options=["--model-name", "smollm2-135m", "--kv-tokens", "8192"])
        gateway = swarm.start("swarm-gateway", "--port", "0")
        url = gateway.wait_line("ready:").split()[-1]
        page = open_page(url, expected=("ERR_",))
        ask(page, "Tell me a long story about a lighthouse keeper.")
        words = growing(page)
        gateway.kill()
        expect(answers(page).get_by_role("alert")).to_contain_text("The connection to the gateway broke.")
        assert words.count() == 0 and answers(page).locator(".words").inner_text()
        shot(page, "trouble-gateway-gone")
        ask(page, "Are you there?")
        expect(answers(page).last.get_by_role("alert")).to_contain_text("Is it still running?")
        swarm.start("swarm-gateway", "--port", url.rpartition(":")[2]).wait_line("ready:")
        page.get_by_role("button", name="Answer again").last.click()
        expect(answers(page).last.locator(".words")).not_to_be_empty(timeout=LIMIT)
