"""A gateway with accounts, asked over HTTP."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from openai_api.accounts import key_format
from openai_api.accounts.access import Accounts
from openai_api.accounts.database import AccountsError, connect
from openai_api.accounts.limits import KeyLimits
from openai_api.accounts.principals import SCOPES, USING, Key
from openai_api.accounts.store import Store
from openai_api.console.console import Console
from routing.view import View
from tests.openai_api.accounts.conftest import Clock, ask, bearer
from tests.openai_api.accounts.toy import HEAD, MODEL, OTHER, SPARE, TAIL, Toy
from tests.openai_api.conftest import serving

Start = Callable[..., str]


@pytest.fixture
def make(store: Store, clock: Clock) -> Callable[..., tuple[Key, str]]:
    """Makes keys; gives them with their texts."""

    def make(name: str = "alice", role: Any = "member", scopes: Any = USING, **options: Any) -> tuple[Key, str]:
        person = store.person(name) or store.add_person(name, role, clock())
        key, text = store.add_key(person, f"{name}'s", scopes, clock(), **options)
        return key, str(text)

    return make


Make = Callable[..., tuple[Key, str]]


def test_a_key_opens_the_gateway_to_the_clients_of_both_apis(gateway: Start, make: Make) -> None:
    _, key = make()
    url = gateway()
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        assert [model.id for model in client.models.list()] == [OTHER, MODEL]
        answer = client.completions.create(
            model=MODEL, prompt=[1, 2, 3], max_tokens=4, extra_body={"return_token_ids": True}
        )
        assert answer.usage is not None and answer.usage.total_tokens == 7
    with anthropic.Anthropic(base_url=url, api_key=key) as other, pytest.raises(anthropic.BadRequestError):
        other.messages.create(model=MODEL, max_tokens=1, messages=[{"role": "user", "content": "Hi"}])  # no tokenizer


def test_each_refusal_says_which_it_is(gateway: Start, make: Make, store: Store, clock: Clock) -> None:
    good, key = make()
    _, short = make(expires=clock() + 60)
    revoked, gone = make()
    _, orphaned = make("bob")
    store.revoke_key(revoked.id, clock())
    bob = store.person("bob")
    assert bob is not None
    store.add_person("carol", "owner", clock())
    store.remove_person(bob.id, clock())
    url = gateway()
    clock.now += 60
    wrong = key_format.KeyText(good.id, key_format.draw().secret)
    said = {}
    for name, text in {
        "none of ours": "none",
        "nonsense": "sk-123",
        "unknown": key_format.draw(),
        "wrong": wrong,
        "wrong of a revoked one": key_format.KeyText(revoked.id, wrong.secret),
        "expired": short,
        "revoked": gone,
        "orphaned": orphaned,
    }.items():
        answer = ask(url, text)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        said[name] = answer.json()["error"]["code"], answer.json()["error"]["message"]
    assert ask(url, key).status_code == 200
    assert {name for name, (code, _) in said.items() if code == "invalid_api_key"} == {
        "none of ours",
        "nonsense",
        "unknown",
        "wrong",
        "wrong of a revoked one",  # only whoever has a key learns what has become of it
    }
    assert said["expired"] == ("expired_api_key", "The API key 'alice's' has expired.")
    assert said["revoked"] == ("revoked_api_key", "The API key 'alice's' was revoked.")
    assert said["orphaned"][0] == "revoked_api_key"


def test_a_key_does_what_its_scopes_say(gateway: Start, make: Make) -> None:
    url = gateway()
    _, only = make(scopes={"inference"})
    _, looks = make(scopes={"console"})
    _, member = make(scopes=SCOPES)
    _, owner = make("root", "owner", scopes=SCOPES)

    def status(path: str, key: str) -> int:
        return httpx.get(url + path, headers=bearer(key)).status_code

    assert [status(path, only) for path in ("/v1/models", "/metrics", "/api/keys")] == [200, 403, 403]
    assert [status(path, looks) for path in ("/v1/models", "/metrics", "/api/keys")] == [403, 200, 403]
    assert [status(path, member) for path in ("/api/keys", "/api/members")] == [200, 403]
    assert [status(path, owner) for path in ("/api/keys", "/api/members")] == [200, 200]
    assert ask(url, looks).json()["error"]["code"] == "insufficient_scope"
    assert status("/openapi.json", only) == 200 and httpx.get(f"{url}/openapi.json").status_code == 401
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert len(httpx.get(f"{url}/health", headers=bearer(only)).json()["models"]) == 2


def test_a_key_for_some_models_sees_and_uses_only_those(gateway: Start, make: Make) -> None:
    _, key = make(models=[MODEL])
    url = gateway()
    listed = httpx.get(f"{url}/v1/models?available=true", headers=bearer(key)).json()["data"]
    assert [model["id"] for model in listed] == [MODEL]
    assert ask(url, key).status_code == 200
    for stream in (False, True):
        refused = ask(url, key, model=OTHER, stream=stream)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    known = [httpx.get(f"{url}/v1/models/{name}", headers=bearer(key)).status_code for name in (MODEL, OTHER)]
    assert known == [200, 404]
    body = {"model": OTHER, "input": [1, 2]}
    assert httpx.post(f"{url}/v1/embeddings", json=body, headers=bearer(key)).status_code == 403
    body = {"model": OTHER, "tokens": [1, 2]}
    assert httpx.post(f"{url}/detokenize", json=body, headers=bearer(key)).status_code == 403


def test_limits_are_said_with_the_time_to_wait(gateway: Start, make: Make, clock: Clock) -> None:
    url = gateway()
    _, key = make(limits=KeyLimits(requests_per_minute=2))
    assert [ask(url, key).status_code for _ in range(3)] == [200, 200, 429]
    clock.now += 20
    refused = ask(url, key)
    assert refused.headers["retry-after"] == "40" and refused.json()["error"]["type"] == "rate_limit_error"
    assert "2 requests a minute" in refused.json()["error"]["message"]
    clock.now += 40
    assert ask(url, key).status_code == 200

    _, daily = make("bob", limits=KeyLimits(tokens_per_day=10))
    assert [ask(url, daily).status_code for _ in range(3)] == [200, 200, 429]  # 7 tokens each
    refused = ask(url, daily)
    assert 0 < int(refused.headers["retry-after"]) == 86400 - clock.now % 86400
    clock.now += 86400
    assert ask(url, daily).status_code == 200


def test_sessions_at_once_are_counted_by_choices_and_given_back(gateway: Start, make: Make, toy: Toy) -> None:
    url = gateway()
    _, key = make(limits=KeyLimits(sessions=2))
    refused = ask(url, key, n=3)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_sessions")
    toy.hold.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, url, key) for _ in range(2)]
        _until(lambda: toy.running == 2)
        refused = ask(url, key)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        toy.hold.set()
        assert [each.result().status_code for each in waiting] == [200, 200]
    assert ask(url, key, n=2).status_code == 200
    toy.hold.clear()
    body = {"model": MODEL, "prompt": [1], "max_tokens": 1, "stream": True, "return_token_ids": True, "n": 2}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json=body, headers=bearer(key), timeout=0.3)
    _until(lambda: toy.running == 0)  # who leaves gives back what was held
    toy.hold.set()
    assert ask(url, key, n=2).status_code == 200


def _until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    pause = threading.Event()
    while not true():
        assert time.monotonic() < limit
        pause.wait(0.02)


def test_usage_is_counted_by_key_and_by_server_also_over_a_failover(gateway: Start, make: Make, toy: Toy) -> None:
    url = gateway()
    _, alice = make()
    _, root = make("root", "owner", scopes=SCOPES)
    assert ask(url, alice).status_code == 200
    assert ask(url, alice, stream=True, n=2).status_code == 200
    toy.change_after = 2
    assert ask(url, alice, model=OTHER).status_code == 200
    assert ask(url, alice, model="unknown").status_code == 404

    found = httpx.get(f"{url}/api/usage", headers=bearer(root)).json()
    used = {row["model"]: (row["requests"], row["prompt_tokens"], row["generated_tokens"]) for row in found["keys"]}
    assert used == {MODEL: (2, 6, 12), OTHER: (1, 3, 4)}
    work = {(row["model"], row["name"]): row["work"] for row in found["servers"]}
    assert work == {
        (MODEL, "head"): 3 * 10 * 6,  # three choices of six computed tokens
        (MODEL, "tail"): 3 * 20 * 6,
        (OTHER, "head"): 10 * 6,
        (OTHER, "tail"): 20 * 4,  # until it was lost
        (OTHER, "spare"): 20 * 6,  # all, since it was fed from the beginning
    }
    assert {row["server"] for row in found["servers"]} == {HEAD, TAIL, SPARE}
    own = httpx.get(f"{url}/api/usage", headers=bearer(alice)).json()
    assert len(own["keys"]) == 2 and own["servers"] is None
    _, other = make("bob")
    assert httpx.get(f"{url}/api/usage?days=7", headers=bearer(other)).json()["keys"] == []
    assert httpx.get(f"{url}/api/usage?days=0", headers=bearer(other)).status_code == 400


def test_owners_manage_all_keys_and_members_their_own(gateway: Start, make: Make) -> None:
    url = gateway()
    _, root = make("root", "owner", scopes=SCOPES)
    mine, alice = make(scopes=SCOPES)
    foreign, bobs = make("bob")

    def post(key: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{url}/api/keys", json={"name": "n", "scopes": ["inference"], **body}, headers=bearer(key))

    made = post(alice, expires=3600, requests_per_minute=5, models=[MODEL]).json()
    assert ask(url, made["key"]).status_code == 200
    listed = httpx.get(f"{url}/api/keys", headers=bearer(alice))
    assert {key["id"] for key in listed.json()["keys"]} == {mine.id, made["id"]}
    assert made["key"].rpartition("-")[2] not in listed.text
    assert len(httpx.get(f"{url}/api/keys", headers=bearer(root)).json()["keys"]) == 4
    assert post(alice, person="bob").status_code == 403
    assert post(root, person="bob").json()["person"] == "bob"
    assert post(root, person="nobody").status_code == 400
    assert post(alice, name="\n").status_code == 400 and post(alice, scopes=[]).status_code == 400
    assert post(alice, nonsense=1).status_code == 400

    def delete(key: str, what: str) -> int:
        return httpx.delete(f"{url}/api/keys/{what}", headers=bearer(key)).status_code

    assert [delete(alice, foreign.id), delete(alice, "unknown"), delete(alice, made["id"])] == [404, 404, 204]
    assert ask(url, made["key"]).json()["error"]["code"] == "revoked_api_key"  # at once, through the same gateway
    assert delete(root, foreign.id) == 204 and ask(url, bobs).status_code == 401

    members = f"{url}/api/members"
    assert httpx.post(members, json={"name": "x"}, headers=bearer(alice)).status_code == 403
    added = httpx.post(members, json={"name": "dora", "email": "D@Example.org"}, headers=bearer(root)).json()
    assert added["email"] == "d@example.org"
    assert httpx.post(members, json={"name": "dora"}, headers=bearer(root)).status_code == 409
    me = next(each for each in httpx.get(members, headers=bearer(root)).json()["members"] if each["name"] == "root")
    last = httpx.patch(f"{members}/{me['id']}", json={"role": "member"}, headers=bearer(root))
    assert (last.status_code, "last owner" in last.text) == (409, True)
    assert httpx.delete(f"{members}/{mine.person.id}", headers=bearer(root)).status_code == 204
    assert ask(url, alice).status_code == 401


def test_a_key_cannot_give_what_it_does_not_have(gateway: Start, make: Make) -> None:
    _, key = make(scopes={"admin"})
    body = {"name": "more", "scopes": ["inference", "admin"]}
    refused = httpx.post(f"{gateway()}/api/keys", json=body, headers=bearer(key))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")


def test_the_gateways_own_key_works_beside_accounts_and_administers_nothing(gateway: Start, make: Make) -> None:
    _, key = make()
    url = gateway(api_key="s3cret", invites=False)
    assert ask(url, key).status_code == ask(url, "s3cret").status_code == 200
    assert ask(url, "s3cret2").status_code == 401
    assert httpx.get(f"{url}/api/keys", headers=bearer("s3cret")).status_code == 403
    account = httpx.get(f"{url}/api/account", headers=bearer("s3cret")).json()
    assert (account["person"], account["invites"]) == (None, False)
    _, root = make("root", "owner", scopes=SCOPES)
    (own,) = [
        row
        for row in httpx.get(f"{url}/api/usage", headers=bearer(root)).json()["keys"]
        if row["name"] == "the gateway's own key"
    ]
    assert own["requests"] == 1


def test_the_page_learns_how_to_get_in_and_no_more(gateway: Start, make: Make) -> None:
    _, key = make()
    url = gateway()
    assert httpx.get(f"{url}/api/account").json() == {"accounts": True, "sign_in": None, "known": False}
    known = httpx.get(f"{url}/api/account", headers=bearer(key)).json()
    assert (known["person"]["name"], known["scopes"], known["invites"]) == ("alice", ["inference", "console"], False)
    assert httpx.get(url).status_code == 200


class NoSwarm:
    view = View()

    def models(self) -> list[Any]:
        return []

    async def links(self) -> dict[str, Any]:
        return {}


def test_join_tokens_are_for_owners(gateway: Start, make: Make) -> None:
    url = gateway(console=Console(NoSwarm()))
    _, member = make(scopes=SCOPES)
    _, owner = make("root", "owner", scopes=SCOPES)
    said = [httpx.post(f"{url}/api/tokens", json={}, headers=bearer(key)) for key in (member, owner)]
    assert [answer.status_code for answer in said] == [403, 403]
    assert "ask an owner" in said[0].text and "has no admin key" in said[1].text
    assert httpx.get(f"{url}/api/swarm", headers=bearer(member)).json()["can_invite"] is False


def test_other_origins_are_let_in_by_name_only(gateway: Start, make: Make) -> None:
    _, key = make()
    origin = {"origin": "https://app.example.org"}
    asks = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    closed, url = gateway(), gateway(origins=["https://app.example.org"])
    assert "access-control-allow-origin" not in httpx.get(f"{closed}/v1/models", headers=bearer(key) | origin).headers
    assert httpx.options(f"{closed}/v1/models", headers=asks).status_code == 401
    preflight = httpx.options(f"{url}/v1/chat/completions", headers=asks)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, origin["origin"])
    assert "access-control-allow-credentials" not in preflight.headers
    answer = httpx.get(f"{url}/v1/models", headers=bearer(key) | origin)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin["origin"])
    refused = httpx.options(f"{url}/v1/models", headers=asks | {"origin": "https://evil.example"})
    assert refused.status_code == 400
    unknown = httpx.get(f"{url}/v1/models", headers=origin)  # a page of that origin can read why
    assert (unknown.status_code, unknown.headers["access-control-allow-origin"]) == (401, origin["origin"])


def test_answers_go_on_while_the_database_takes_nothing_and_nothing_is_lost(
    toy: Toy, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openai_api.accounts.database.WAIT", 0.01)
    caplog.set_level(logging.INFO)
    store = Store(connect(f"sqlite:///{tmp_path / 'own.db'}"))
    root = store.add_person("root", "owner", clock())
    key = str(store.add_key(root, "all", SCOPES, clock(), limits=KeyLimits(tokens_per_day=1000))[1])
    locker = sqlite3.connect(tmp_path / "own.db", isolation_level=None)
    with serving(toy, accounts=Accounts(store, clock)) as url:

        def requests() -> int:
            found = httpx.get(f"{url}/api/usage", headers=bearer(key)).json()["keys"]
            return sum(row["requests"] for row in found)

        assert ask(url, key).status_code == 200 and requests() == 1
        locker.execute("BEGIN IMMEDIATE")
        assert [ask(url, key).status_code for _ in range(3)] == [200] * 3
        assert requests() == 1 and requests() == 1
        locker.execute("COMMIT")
        assert requests() == 4
    locker.close()
    said = [record.getMessage() for record in caplog.records if record.name.endswith("usage_writer")]
    assert said == [
        "usage cannot be written down (the accounts cannot be used now: database is locked); "
        "it is kept and tried again",
        "usage is written down again",
    ]
    assert key not in caplog.text and "INSERT" not in caplog.text
    store.close()


def test_a_key_that_was_good_stays_so_for_a_while_without_the_database(
    gateway: Start, make: Make, accounts: Accounts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, key = make()
    _, other = make("bob")
    url = gateway()
    assert ask(url, key).status_code == 200

    def lost(id: str) -> None:
        raise AccountsError("the accounts cannot be used now: no route to host 10.1.2.3")

    monkeypatch.setattr(accounts.store, "key", lost)
    clock.now += 30
    assert ask(url, key).status_code == 200
    refused = ask(url, other)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert "10.1.2.3" not in refused.text
    clock.now += 60
    assert ask(url, key).status_code == 503


def test_a_key_that_another_program_revoked_is_refused_within_seconds(
    gateway: Start, make: Make, store: Store, clock: Clock
) -> None:
    found, key = make()
    url = gateway()
    assert ask(url, key).status_code == 200
    store.revoke_key(found.id, clock())
    clock.now += 2.5
    assert ask(url, key).status_code == 401
