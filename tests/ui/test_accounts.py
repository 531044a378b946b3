"""Keys and usage in a real browser, on a gateway in front of a toy swarm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from openai_api.accounts.access import Accounts
from openai_api.accounts.database import connect
from openai_api.accounts.limits import day_of
from openai_api.accounts.principals import EVERYTHING
from openai_api.accounts.sign_in import SignIn, provider_of
from openai_api.accounts.store import Store
from openai_api.accounts.usage import Asked, Tally
from openai_api.http import static_site
from tests.openai_api.accounts.conftest import ask
from tests.openai_api.accounts.provider import CLIENT, SECRET, providing
from tests.openai_api.accounts.toy import HEAD, MODEL, TAIL, Toy
from tests.openai_api.conftest import serving
from tests.ui.conftest import OpenPage

Shot = Callable[[Page, str], None]
Accessible = Callable[[Page], None]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(connect(f"sqlite:///{tmp_path / 'accounts.db'}"))
    yield store
    store.close()


@pytest.fixture
def accounts(store: Store) -> Accounts:
    return Accounts(store)


def unlock(page: Page, key: str) -> None:
    asking = page.get_by_role("dialog", name="This gateway asks for an API key")
    asking.get_by_label("API key").fill(key)
    asking.get_by_role("button", name="Use key").click()
    expect(asking).to_have_count(0)


def go(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Views").get_by_role("button", name=name, exact=True).click()


def test_a_key_is_made_shown_once_used_and_revoked(
    accounts: Accounts, store: Store, open_page: OpenPage, shot: Shot, accessible: Accessible
) -> None:
    root = store.add_person("root", "owner", time.time())
    store.add_person("alice", "member", time.time())
    owner = str(store.add_key(root, "first", EVERYTHING, time.time())[1])
    with serving(Toy(), accounts=accounts, site=static_site.load()) as url:
        page = open_page(url, permissions=["clipboard-read", "clipboard-write"])
        unlock(page, owner)
        go(page, "API keys")
        rows = page.get_by_role("group", name="API keys").locator("tbody tr")
        expect(rows).to_have_count(1)
        page.get_by_role("button", name="Make a key").click()
        dialog = page.get_by_role("dialog", name="Make a key")
        dialog.get_by_label("Name").fill("laptop")
        dialog.get_by_label("Member").select_option("alice")
        dialog.get_by_label("Expires").select_option("In 30 days")
        dialog.get_by_label("Requests a minute").fill("1")
        dialog.get_by_role("checkbox", name=MODEL).check()
        shot(page, "keys-make")
        accessible(page)
        dialog.get_by_role("button", name="Make key").click()
        made = page.get_by_role("dialog", name="The new key")
        key = made.locator("pre").inner_text().strip()
        made.get_by_role("button", name="Copy").click()
        expect(made.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == key
        shot(page, "keys-made")
        accessible(page)
        made.get_by_role("button", name="Done").click()
        expect(rows).to_have_count(2)
        expect(rows.last).to_contain_text("alice")
        expect(rows.last).to_contain_text(f"only {MODEL}; 1 request a minute")
        assert key not in page.content()
        shot(page, "keys-list")
        accessible(page)
        assert [ask(url, key).status_code for _ in range(2)] == [200, 429]

        page.get_by_role("button", name="Revoke laptop").click()
        page.get_by_role("dialog", name="Revoke this key?").get_by_role("button", name="Revoke", exact=True).click()
        expect(rows.last).to_contain_text("revoked")
        assert ask(url, key).json()["error"]["code"] == "revoked_api_key"

        page.reload()
        expect(page.get_by_role("heading", name="API keys")).to_be_visible()  # the address says where one was


def test_usage_is_drawn_by_day_key_and_server(
    accounts: Accounts, store: Store, open_page: OpenPage, shot: Shot, accessible: Accessible
) -> None:
    now = time.time()
    root = store.add_person("root", "owner", now)
    key, text = store.add_key(root, "first", EVERYTHING, now)
    tally = Tally()
    for back in range(20):
        day = day_of(now - back * 86400)
        tally.add(Asked(day, root.id, key.id, MODEL), 2, 1000 * (back % 5), 400)
        tally.add(Asked(day, 0, "", MODEL), 1, 300 * (back % 3), 50)
        tally.add_served(day, MODEL, {HEAD: 5000 + 100 * back, TAIL: 9000}, {HEAD: "head", TAIL: "tail"})
    store.record(tally)
    with serving(Toy(), accounts=accounts, site=static_site.load()) as url:
        page = open_page(url)
        unlock(page, str(text))
        go(page, "Usage")
        bars = page.locator(".chart .day")
        expect(bars).to_have_count(30)
        expect(page.locator(".chart figcaption li")).to_have_text(["first (root)", "the gateway's own key"])
        total = page.get_by_role("group", name="Usage in all")
        expect(total.locator("tbody tr").first).to_contain_text("first")
        expect(total.locator("tbody tr").first.locator("td.number")).to_have_text(["40", "40,000", "8,000"])
        shot(page, "usage-keys")
        accessible(page)
        page.get_by_role("button", name="By server").click()
        expect(total.locator("tbody tr")).to_have_count(2)
        expect(total).to_contain_text("180,000")
        page.get_by_label("Days").select_option("7 days")
        expect(bars).to_have_count(7)
        expect(total).to_contain_text("63,000")
        page.emulate_media(color_scheme="dark")
        shot(page, "usage-servers-dark")
        accessible(page)
        page.set_viewport_size({"width": 375, "height": 720})
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        shot(page, "usage-phone")
        accessible(page)


def test_without_accounts_the_pages_say_how_to_have_them(
    open_page: OpenPage, shot: Shot, accessible: Accessible
) -> None:
    with serving(Toy(), site=static_site.load()) as url:
        page = open_page(url)
        for name in ("API keys", "Usage"):
            go(page, name)
            expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
            expect(page.get_by_text("swarm key create NAME --owner")).to_be_visible()
        shot(page, "keys-none")
        accessible(page)


def test_members_sign_in_and_out(accounts: Accounts, open_page: OpenPage, shot: Shot, accessible: Accessible) -> None:
    with providing() as provider:
        provider.person = {"sub": "1", "email": "alice@example.org", "email_verified": True, "name": "Alice"}

        def options(url: str) -> dict[str, object]:
            known = provider_of(provider.url, CLIENT, SECRET, [], ["@example.org"])
            return {"sign_in": SignIn(known, accounts, url)}

        with serving(Toy(), options_for=options, accounts=accounts, site=static_site.load()) as url:
            page = open_page(url, elsewhere=provider.url)
            asking = page.get_by_role("dialog", name="This gateway asks for an API key")
            link = asking.get_by_role("link", name="Sign in instead")
            expect(link).to_be_visible()
            shot(page, "sign-in")
            accessible(page)
            link.click()
            go(page, "API keys")
            expect(page.get_by_text("Alice, member")).to_be_visible()
            page.get_by_role("button", name="Make a key").click()
            page.get_by_role("dialog").get_by_label("Name").fill("mine")
            page.get_by_role("button", name="Make key").click()
            page.get_by_role("button", name="Done").click()
            expect(page.get_by_role("button", name="Revoke mine")).to_be_visible()
            assert page.evaluate("document.cookie") == ""
            page.get_by_role("button", name="Sign out").click()
            expect(asking).to_be_visible()
