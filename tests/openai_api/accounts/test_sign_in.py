"""Signing in with a real OpenID provider, as a browser does it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("authlib", reason="Authlib is not installed (the extra 'openid')")

from joserfc.jwk import RSAKey

from openai_api.accounts.access import Accounts
from openai_api.accounts.sign_in import SignIn, provider_of
from openai_api.accounts.store import Store
from swarm import SwarmError
from tests.openai_api.accounts.provider import CLIENT, SECRET, OpenIdProvider, providing
from tests.openai_api.accounts.toy import MODEL

ALICE = {"sub": "1", "email": "Alice@Example.org", "email_verified": True, "name": "Alice"}
SAME = {"sec-fetch-site": "same-origin"}


@pytest.fixture
def provider() -> Iterator[OpenIdProvider]:
    with providing() as provider:
        provider.person = dict(ALICE)
        yield provider


@pytest.fixture
def url(gateway: Callable[..., str], accounts: Accounts, provider: OpenIdProvider) -> str:
    accounts.clock = time.time

    def options(url: str) -> dict[str, Any]:
        known = provider_of(provider.url, CLIENT, SECRET, ["owner@example.org"], ["@example.org"])
        return {"sign_in": SignIn(known, accounts, url)}

    return gateway(options_for=options)


@pytest.fixture
def browser() -> Iterator[httpx.Client]:
    with httpx.Client(follow_redirects=True, timeout=60, headers=SAME) as browser:
        yield browser


def test_who_signs_in_may_chat_and_see_the_own_account_until_signing_out(
    url: str, browser: httpx.Client, store: Store
) -> None:
    assert browser.get(f"{url}/api/account").json()["sign_in"] == "/api/sign-in"
    assert browser.get(f"{url}/v1/models").status_code == 401
    arrived = browser.get(f"{url}/api/sign-in")
    assert (arrived.url, arrived.status_code) == (httpx.URL(f"{url}/"), 200)
    (last,) = (hop for hop in arrived.history if "swarm-visit" in hop.headers.get("set-cookie", ""))
    attributes = last.headers.get_list("set-cookie")
    (visit,) = (each for each in attributes if each.startswith("swarm-visit"))
    assert "HttpOnly" in visit and "SameSite=strict" in visit and "Path=/" in visit
    account = browser.get(f"{url}/api/account").json()
    assert account["person"]["name"] == "Alice" and account["person"]["role"] == "member" and account["signed_in"]
    body = {"model": MODEL, "prompt": [1, 2], "max_tokens": 2, "return_token_ids": True}
    assert browser.post(f"{url}/v1/completions", json=body).status_code == 200
    (used,) = browser.get(f"{url}/api/usage").json()["keys"]
    assert (used["name"], used["person"], used["generated_tokens"]) == ("signed in", "Alice", 2)
    made = browser.post(f"{url}/api/keys", json={"name": "laptop", "scopes": ["inference"]})
    assert made.json()["person"] == "Alice"

    kept = dict(browser.cookies)
    assert browser.post(f"{url}/api/sign-out").status_code == 204
    assert browser.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", cookies=kept).status_code == 401  # the cookie alone is worth nothing now
    browser.get(f"{url}/api/sign-in")
    assert len(store.people()) == 1  # the same person again


def test_another_page_cannot_use_the_cookie(url: str, browser: httpx.Client) -> None:
    browser.get(f"{url}/api/sign-in")
    key = {"name": "stolen", "scopes": ["admin"]}
    host = url.removeprefix("http://")
    for headers in ({"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}):
        assert browser.post(f"{url}/api/keys", json=key, headers=headers).status_code == 401
        assert browser.get(f"{url}/api/keys", headers=headers).status_code == 401
    with httpx.Client(cookies=browser.cookies, timeout=60) as old:  # browsers that say nothing of the site
        for headers in ({"origin": "https://evil.example"}, {"referer": "https://evil.example/x"}, {}):
            assert old.post(f"{url}/api/keys", json=key, headers=headers).status_code == 401
        assert old.post(f"{url}/api/keys", json=key, headers={"origin": f"http://{host}"}).status_code == 200
        assert old.get(f"{url}/api/keys", headers={"host": "rebound.example", "origin": url}).status_code == 401


def test_owners_come_from_the_list_and_others_need_to_be_known(
    url: str, browser: httpx.Client, provider: OpenIdProvider, store: Store
) -> None:
    provider.person = {"sub": "2", "email": "owner@example.org", "email_verified": True}
    browser.get(f"{url}/api/sign-in")
    assert browser.get(f"{url}/api/account").json()["person"]["role"] == "owner"
    provider.person = {"sub": "3", "email": "guest@elsewhere.org", "email_verified": True, "name": "Alice"}
    refused = browser.get(f"{url}/api/sign-in")
    assert (refused.status_code, "guest@elsewhere.org has no account" in refused.text) == (403, True)
    added = {"name": "guest", "email": "guest@elsewhere.org"}
    assert browser.post(f"{url}/api/members", json=added).status_code == 200
    browser.get(f"{url}/api/sign-in")
    account = browser.get(f"{url}/api/account").json()
    assert (account["person"]["name"], account["person"]["role"]) == ("guest", "member")
    provider.person = {"sub": "4", "email": "guest@elsewhere.org", "email_verified": True}
    assert browser.get(f"{url}/api/sign-in").status_code == 403  # another person under a known address
    guest = store.person("guest")
    assert guest is not None
    store.remove_person(guest.id, time.time())
    provider.person["sub"] = "3"
    assert browser.get(f"{url}/api/sign-in").status_code == 403


@pytest.mark.parametrize(
    "forged",
    [
        {"nonce": "another"},
        {"aud": "another client"},
        {"iss": "https://evil.example"},
        {"exp": 1},
        {"email_verified": False},
        {"email_verified": "true"},
        {"email": None},
        {"sub": ""},
    ],
)
def test_what_the_provider_did_not_say_lets_nobody_in(
    url: str, browser: httpx.Client, provider: OpenIdProvider, store: Store, forged: dict[str, Any]
) -> None:
    provider.forged = forged
    assert browser.get(f"{url}/api/sign-in").status_code in (400, 403)
    assert store.people() == [] and browser.get(f"{url}/v1/models").status_code == 401


def test_another_key_another_browser_or_a_second_time_lets_nobody_in(
    url: str, browser: httpx.Client, provider: OpenIdProvider, store: Store
) -> None:
    provider.key = RSAKey.generate_key(2048, {"kid": "1"})
    assert browser.get(f"{url}/api/sign-in").status_code == 400
    provider.key = provider.published
    browser.follow_redirects = False
    led = browser.get(browser.get(f"{url}/api/sign-in").headers["location"]).headers["location"]
    assert led.startswith(f"{url}/api/sign-in/callback?")
    assert httpx.get(led).status_code == 400  # whoever is led here by somebody else's link
    assert store.people() == []
    assert browser.get(led).status_code == 303
    assert browser.get(led).status_code == 400
    assert browser.get(f"{url}/api/sign-in/callback").status_code == 400


def test_where_the_browser_comes_back_to_is_not_for_the_request_to_say(
    url: str, browser: httpx.Client, provider: OpenIdProvider
) -> None:
    browser.follow_redirects = False
    asked = browser.get(f"{url}/api/sign-in?next=https://evil.example", headers={"host": "evil.example"})
    assert "evil" not in asked.headers["location"]
    led = browser.get(browser.get(f"{url}/api/sign-in").headers["location"]).headers["location"]
    assert browser.get(f"{led}&next=https://evil.example").headers["location"] == "/"


def test_a_provider_that_cannot_be_asked_or_is_another_is_said(
    url: str, browser: httpx.Client, provider: OpenIdProvider
) -> None:
    provider.metadata = {"issuer": "https://evil.example"}
    refused = browser.get(f"{url}/api/sign-in")
    assert (refused.status_code, "cannot be asked" in refused.text) == (502, True)


def test_options_that_do_not_fit_are_refused(accounts: Accounts) -> None:
    for issuer, client, owners, said in (
        ("https://id.example", None, [], "client-id"),
        ("http://id.example", "c", [], "https"),
        ("id.example", "c", [], "URL"),
        ("https://id.example", "c", ["example.org"], "e-mail"),
    ):
        with pytest.raises(SwarmError, match=said):
            provider_of(issuer, client, None, owners, [])
    with pytest.raises(SwarmError, match="--url"):
        SignIn(provider_of("https://id.example", "c", None, [], []), accounts, "chat.example.org")
    known = provider_of("https://id.example/.well-known/openid-configuration", "c", "hidden", ["A@b.C"], ["@x.org"])
    assert known.issuer == "https://id.example" and known.owners == {"a@b.c"} and "hidden" not in repr(known)
    assert known.admits("me@x.org") and not known.admits("me@y.org") and not known.admits("x.org@y.org")
