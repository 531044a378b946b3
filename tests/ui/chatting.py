"""What a person does on the chat page."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

LIMIT = 120_000  # ms for an answer; these machines are slow


def ask(page: Page, question: str) -> None:
    """Write a question and send it."""
    page.get_by_role("textbox", name="Message").fill(question)
    page.get_by_role("button", name="Send").click()


def answers(page: Page) -> Locator:
    return page.get_by_role("article", name="Answer")


def wait_answered(page: Page, number: int = 1) -> Locator:
    """The newest answer, the `number`th, once it is complete."""
    newest = answers(page).nth(number - 1)
    expect(newest.get_by_role("button", name="Answer again")).to_be_attached(timeout=LIMIT)
    return newest


def growing(page: Page) -> Locator:
    """The answer that is being made, once it has words."""
    words = page.locator(".words.growing")
    expect(words).to_be_visible(timeout=LIMIT)
    return words


def tune(page: Page, **fields: str) -> None:
    """Set fields of the chat's settings, by their titles with underscores for spaces."""
    page.get_by_role("button", name="Chat settings").click()
    dialog = page.get_by_role("dialog", name="Chat settings")
    for title, value in fields.items():
        dialog.get_by_label(title.replace("_", " "), exact=False).first.fill(value)
    dialog.get_by_role("button", name="Use").click()
