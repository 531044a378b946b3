"""Chatting in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, expect

from tests.e2e.programs import LIMIT as PATIENCE
from tests.e2e.programs import Swarm
from tests.ui.chatting import LIMIT, answers, ask, growing, tune, wait_answered
from tests.ui.conftest import SHOTS, OpenPage, serve

FIRST_LOAD = 350_000  # bytes of compressed JavaScript
GENEROUS = 1000  # ms; 100 are promised, and a busy machine is no reason to fail
Shot = Callable[[Page, str], None]
Accessible = Callable[[Page], None]


def test_a_conversation_over_two_turns_with_branches_is_back_after_a_reload(
    url: str, open_page: OpenPage, shot: Shot, accessible: Accessible
) -> None:
    page = open_page(url)
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible(timeout=LIMIT)
    shot(page, "chat-empty")
    accessible(page)
    page.get_by_role("button", name="Chat settings").click()
    shot(page, "chat-settings")
    accessible(page)
    page.keyboard.press("Escape")
    tune(page, Temperature="0")
    ask(page, "What is the capital of France?")
    first = wait_answered(page)
    expect(first).to_contain_text("Paris")
    ask(page, "And the capital of Germany?")
    expect(wait_answered(page, 2)).to_contain_text("Berlin")

    first.get_by_role("button", name="How this answer was made").click()
    expect(first).to_contain_text("tokens/s")
    expect(first).to_contain_text("First token after")
    expect(first.locator(".route li")).to_have_text(["head 0:15", "tail 15:30"])
    shot(page, "chat-two-turns")
    accessible(page)

    first.get_by_role("button", name="Answer again").click()
    expect(answers(page)).to_have_count(1)  # the second turn belongs to the other branch
    expect(wait_answered(page)).to_contain_text("2 / 2")
    page.get_by_role("button", name="The version before").click()
    expect(answers(page)).to_have_count(2)

    question = page.get_by_role("article", name="You").last
    question.hover()
    question.get_by_role("button", name="Edit and ask again").click()
    page.get_by_role("textbox", name="Edit your message").fill("And the capital of Italy?")
    page.get_by_role("button", name="Ask again", exact=True).click()
    expect(wait_answered(page, 2)).to_contain_text("Rome")
    expect(page.get_by_role("article", name="You").last).to_contain_text("2 / 2")

    page.get_by_role("button", name="What is the capital of France?").locator("time").wait_for()
    page.wait_for_timeout(500)  # the page writes what has changed
    page.reload()
    expect(answers(page)).to_have_count(2)
    expect(answers(page).last).to_contain_text("Rome")
    expect(answers(page).first).to_contain_text("1 / 2")
    assert _setting(page, "Temperature") == "0"


def _setting(page: Page, name: str) -> str:
    page.get_by_role("button", name="Chat settings").click()
    value = page.get_by_role("dialog").get_by_label(name).input_value()
    page.keyboard.press("Escape")
    return value


def test_an_answer_can_be_stopped_and_the_conversation_goes_on(url: str, open_page: OpenPage, shot: Shot) -> None:
    page = open_page(url)
    tune(page, Temperature="0")
    ask(page, "Tell me a long story about a lighthouse keeper.")
    growing(page)
    shot(page, "chat-streaming")
    page.get_by_role("button", name="Stop").click()
    stopped = wait_answered(page)
    expect(stopped).to_contain_text("Stopped.")
    words = stopped.locator(".words").inner_text()
    assert words
    ask(page, "What is the capital of France?")
    expect(wait_answered(page, 2)).to_contain_text("Paris")
    assert stopped.locator(".words").inner_text() == words
    page.get_by_role("button", name="New chat").click()
    tune(page, Temperature="0")
    ask(page, "Tell me a long story about a lighthouse keeper.")
    growing(page)
    page.keyboard.press("Escape")
    expect(wait_answered(page)).to_contain_text("Stopped.")


def test_a_server_killed_in_mid_answer_is_a_note_in_the_message(
    url: str, swarm: Swarm, smollm2: Path, open_page: OpenPage, shot: Shot, accessible: Accessible
) -> None:
    serve(swarm, smollm2, spare="15:30")
    _when(url, lambda servers: sum(server["state"] == "ready" for server in servers) == 3)
    page = open_page(url)
    tune(page, Temperature="0", Greatest_length="220")
    ask(page, "Tell me a long story about a lighthouse keeper.")
    growing(page)
    busy = _when(url, lambda servers: next((s["name"] for s in servers if s["start"] == 15 and s["sessions"]), None))
    before = growing(page).inner_text()
    victim = swarm.servers[1 if busy == "tail" else 2]
    victim.kill()
    swarm.servers.remove(victim)
    answer = wait_answered(page)
    expect(answer.locator(".notes")).to_contain_text("The server of blocks 15:30 was lost")
    expect(answer.get_by_role("alert")).to_have_count(0)
    after = answer.locator(".words").inner_text()
    assert after.startswith(before[:40]) and len(after) > len(before)
    answer.get_by_role("button", name="How this answer was made").click()
    expect(answer.locator(".route")).to_have_count(2)
    answer.locator(".making").scroll_into_view_if_needed()
    shot(page, "chat-failover")
    accessible(page)


def _when(url: str, wanted: Callable[[list[dict[str, Any]]], Any]) -> Any:
    """What `wanted` says of the servers, once it is true; the gateway hears of them as they come."""
    with httpx.stream("GET", f"{url}/api/events", timeout=PATIENCE) as response:
        for line in response.iter_lines():
            if line.startswith('data: {"directories"'):
                models = json.loads(line.removeprefix("data: "))["models"]
                if found := wanted([server for model in models for server in model["servers"]]):
                    return found
    raise AssertionError("the gateway closed the stream of events")


def test_chats_are_found_renamed_exported_imported_and_deleted(
    url: str, open_page: OpenPage, shot: Shot, accessible: Accessible
) -> None:
    page = open_page(url)
    for number, question in enumerate(("Name a colour.", "Name an animal."), 1):
        tune(page, Greatest_length="8")
        ask(page, question)
        wait_answered(page)
        expect(page.locator(".chats .chat")).to_have_count(number)
        if number == 1:
            page.get_by_role("button", name="New chat").click()
    chats = page.locator(".chats .chat .title")
    page.get_by_role("searchbox", name="Search chats").fill("animal")
    expect(chats).to_have_text(["Name an animal."])
    page.get_by_role("searchbox", name="Search chats").fill("")
    expect(chats).to_have_count(2)

    page.locator(".chats .chat").first.hover()
    page.get_by_role("button", name="Rename Name an animal.").click()
    page.get_by_role("textbox", name="New name").fill("Animals")
    page.keyboard.press("Enter")
    expect(chats.first).to_have_text("Animals")

    page.get_by_role("button", name="Page settings").click()
    shot(page, "page-settings")
    accessible(page)
    with page.expect_download() as offered:
        page.get_by_role("button", name="Export all").click()
    exported = offered.value.path().read_text(encoding="utf-8")
    assert "Name a colour." in exported
    chooser = page.locator("input[type=file]")
    chooser.set_input_files({"name": "x.json", "mimeType": "application/json", "buffer": b"[]"})
    expect(page.get_by_text("This file holds no conversations of this page.")).to_be_visible()
    chooser.set_input_files({"name": "chats.json", "mimeType": "application/json", "buffer": exported.encode()})
    expect(page.get_by_text("2 chats added.")).to_be_visible()
    page.keyboard.press("Escape")
    expect(chats).to_have_text(["Animals", "Animals", "Name a colour.", "Name a colour."])

    page.locator(".chats .chat").first.hover()
    page.get_by_role("button", name="Delete Animals").first.click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(chats).to_have_count(3)
    page.reload()
    expect(chats).to_have_count(3)


def test_what_is_kept_on_the_device_cannot_be_read_without_its_key(url: str, open_page: OpenPage) -> None:
    page = open_page(url)
    tune(page, Greatest_length="8")
    ask(page, "A secret question about a heron")
    wait_answered(page)
    page.wait_for_timeout(500)
    kept = page.evaluate(
        """async () => {
          const db = await new Promise((done) => {
            const opening = indexedDB.open("swarm-chat");
            opening.onsuccess = () => done(opening.result);
          });
          const all = (store) => new Promise((done) => {
            const asking = db.transaction(store).objectStore(store).getAll();
            asking.onsuccess = () => done(asking.result);
          });
          const records = await all("records"), [key] = await all("keys");
          const taken = await crypto.subtle.exportKey("raw", key).then(() => "yes", () => "no");
          const text = records.map((record) => new TextDecoder("latin1").decode(record.data)).join();
          return { records: records.length, text, taken, extractable: key.extractable,
                   storage: JSON.stringify({ ...localStorage, ...sessionStorage }) };
        }"""
    )
    assert kept["records"] == 2
    assert (kept["taken"], kept["extractable"]) == ("no", False)
    assert "heron" not in kept["text"] + kept["storage"]


def test_code_is_coloured_and_can_be_copied(url: str, open_page: OpenPage, shot: Shot, accessible: Accessible) -> None:
    page = open_page(url, permissions=["clipboard-read", "clipboard-write"])
    source = 'def greet(name: str) -> str:\n    """Say hello."""\n    return f"Hello, {name}!"\n'
    text = (
        f"Here it is:\n\n```python\n{source}```\n\n| a | b |\n|---|---|\n| 1 | **2** |\n\n"
        "![a cat](https://example.org/cat.png) and [a link](https://example.org).\n\n<script>alert(1)</script>"
    )
    message = {"role": "assistant", "id": "2", "content": [{"type": "text", "text": text}]}
    message |= {"createdAt": "2026-01-01T00:00:00Z", "status": {"type": "complete", "reason": "stop"}}
    message |= {"metadata": {"unstable_annotations": [], "unstable_data": [], "steps": [], "custom": {}}}
    question = {"role": "user", "id": "1", "content": [{"type": "text", "text": "How do I greet?"}], "attachments": []}
    question |= {"createdAt": "2026-01-01T00:00:00Z", "metadata": {"custom": {}}}
    items = [{"message": question, "parentId": None}, {"message": message, "parentId": "1"}]
    chat = {"title": "Greeting", "messages": {"headId": "2", "messages": items}}
    file = json.dumps({"format": "swarm-chat", "version": 1, "conversations": [chat]}).encode()
    page.get_by_role("button", name="Page settings").click()
    page.locator("input[type=file]").set_input_files({"name": "c.json", "mimeType": "application/json", "buffer": file})
    expect(page.get_by_text("1 chat added.")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Greeting", exact=False).first.click()
    answer = answers(page)
    expect(answer.locator(".hljs-keyword").first).to_have_text("def")
    page.get_by_role("button", name="Copy code").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == source
    expect(answer.locator("img, script")).to_have_count(0)
    expect(answer.get_by_role("link", name="a cat")).to_be_visible()
    shot(page, "chat-code")
    accessible(page)
    page.emulate_media(color_scheme="dark")
    accessible(page)
    shot(page, "chat-code-dark")


def test_the_keyboard_is_enough(url: str, open_page: OpenPage) -> None:
    page = open_page(url)
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible(timeout=LIMIT)
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    page.keyboard.type("What is the capital")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("of France?")
    page.keyboard.press("Enter")
    wait_answered(page)
    expect(page.get_by_role("textbox", name="Message")).to_be_focused()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert {"Copy", "Answer again", "How this answer was made", "Chat settings", "Model", "Messages"} <= reached
    page.keyboard.press("Control+k")
    expect(page.get_by_role("searchbox", name="Search chats")).to_be_focused()
    page.keyboard.press("Control+Shift+O")
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible()
    page.get_by_role("button", name="Chat settings").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Chat settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Chat settings")).to_be_focused()


def test_it_fits_a_phone_and_the_dark(url: str, open_page: OpenPage, shot: Shot, accessible: Accessible) -> None:
    page = open_page(url, viewport={"width": 375, "height": 720}, has_touch=True, is_mobile=True, color_scheme="dark")
    tune(page, Temperature="0")
    ask(page, "What is the capital of France?")
    expect(wait_answered(page)).to_contain_text("Paris")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    shot(page, "phone-dark-chat")
    accessible(page)
    page.get_by_role("button", name="Conversations").click()
    drawer = page.get_by_role("dialog", name="Conversations")
    expect(drawer).to_be_visible()
    shot(page, "phone-dark-drawer")
    drawer.get_by_role("button", name="Swarm", exact=True).click()
    expect(page.get_by_role("heading", name="Swarm", exact=True)).to_be_visible()
    page.get_by_role("button", name=re.compile(r"^head 0:15")).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    shot(page, "phone-dark-swarm")
    accessible(page)


def test_the_theme_is_a_choice_that_stays(url: str, open_page: OpenPage) -> None:
    page = open_page(url, color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Page settings").click()
    page.get_by_label("Dark").check()
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == dark


def test_a_gateway_with_a_key_asks_for_it(swarm: Swarm, open_page: OpenPage, shot: Shot) -> None:
    url = swarm.start("swarm-gateway", "--port", "0", "--api-key", "k").wait_line("ready:").split()[-1]
    page = open_page(url.replace("127.0.0.1", "localhost"))
    said = page.get_by_role("dialog", name="This gateway asks for an API key")
    expect(said).to_be_visible()
    shot(page, "chat-locked")
    said.get_by_label("API key").fill("another")
    said.get_by_role("button", name="Use key").click()
    expect(said).to_contain_text("is not the right one")
    said.get_by_label("API key").fill("k")
    said.get_by_role("button", name="Use key").click()
    expect(said).to_have_count(0)
    expect(page.get_by_role("combobox", name="Model")).to_have_value("smollm2-135m")


def test_the_first_load_is_small(url: str, open_page: OpenPage) -> None:
    page = open_page(url)
    expect(page.get_by_role("heading", name="What would you like to know?")).to_be_visible(timeout=LIMIT)
    sizes = page.evaluate(
        """() => performance.getEntriesByType("resource").filter((each) => each.name.endsWith(".js"))
             .map((each) => [new URL(each.name).pathname, each.encodedBodySize])"""
    )
    print(sizes)
    assert 0 < sum(size for _, size in sizes) < FIRST_LOAD


# Notes when the first words of an answer reach the page, and when they stand on it.
STOPWATCH = """
  const read = ReadableStreamDefaultReader.prototype.read;
  ReadableStreamDefaultReader.prototype.read = async function (...rest) {
    const result = await read.apply(this, rest);
    if (!window.arrived && result.value && /"content":"[^"]/.test(new TextDecoder().decode(result.value))) {
      window.arrived = performance.now();
    }
    return result;
  };
  new MutationObserver(() => {
    if (window.arrived && !window.drawn && document.querySelector(".words p")) {
      requestAnimationFrame(() => (window.drawn ??= performance.now()));
    }
  }).observe(document, { subtree: true, childList: true, characterData: true });
"""


def test_the_first_words_stand_on_the_page_as_they_arrive(url: str, open_page: OpenPage) -> None:
    page = open_page(url)
    page.evaluate(STOPWATCH)
    tune(page, Greatest_length="8")
    ask(page, "What is the capital of France?")
    wait_answered(page)
    took = page.evaluate("window.drawn - window.arrived")
    SHOTS.mkdir(parents=True, exist_ok=True)
    (SHOTS / "first-words.json").write_text(json.dumps({"milliseconds from the stream to the screen": took}))
    assert 0 <= took < GENEROUS
