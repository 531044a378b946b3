"""Accounts from the command line, and which of them a gateway uses when it starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner

from openai_api.accounts import key_format
from openai_api.accounts.access import Accounts
from openai_api.accounts.limits import day_of
from openai_api.accounts.options import OpenIdOptions
from openai_api.accounts.principals import EVERYTHING
from openai_api.accounts.setup import accounts_of, can_get_in, origins_of, provider
from openai_api.accounts.usage import Asked, Tally
from swarm import SwarmError
from swarm.cli import extensions
from swarm.cli.main import cli
from tests.e2e.programs import Swarm
from tests.families import make_model
from tests.openai_api.accounts.conftest import bearer

NOBODY = OpenIdOptions()


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, arguments, prog_name="swarm")
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.output


def listed() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("key", "list", "--json"))
    return found


def store_of(accounts: Accounts | None) -> Any:
    assert accounts is not None
    return accounts.store


def test_keys_and_members_are_made_listed_and_taken_back(swarm_home: Path) -> None:
    text = run("key", "create", "alice", "--owner", "--expires", "7d").strip()
    made = key_format.parse(text)
    assert made is not None
    limits = ["--requests-per-minute", "30", "--tokens-per-day", "200000", "--sessions", "2", "--models", "a, b"]
    second = json.loads(run("key", "create", "laptop", "--for", "bob", "--scope", "inference", *limits, "--json"))
    alice, bob = sorted(listed(), key=lambda key: str(key["name"]))
    assert alice["id"] == made.id and alice["expires"] == pytest.approx(alice["created"] + 7 * 86400)
    assert set(alice["scopes"]) == EVERYTHING and bob["scopes"] == ["inference"] and bob["models"] == ["a", "b"]
    assert (bob["person"], bob["requests_per_minute"], bob["sessions"]) == ("bob", 30, 2)
    shown = run("key", "list")
    assert made.id in shown and "alice (owner)" in shown and "200000 tokens/day" in shown
    assert made.secret not in shown and second["key"] not in shown
    assert "owner" in run("member", "list") and [each["name"] for each in json.loads(run("member", "list", "--json"))]

    assert run("key", "revoke", "laptop").startswith(f"revoked {second['id']}")
    assert {key["name"]: key["state"] for key in listed()} == {"alice": "good", "laptop": "revoked"}
    run("member", "add", "carol", "--email", "Carol@Example.org")
    run("member", "role", "carol@example.org", "owner")
    run("member", "remove", "alice")
    assert {key["name"]: key["state"] for key in listed()}["alice"] == "removed"
    for arguments, said in (
        (("key", "revoke", "nothing"), "no key is 'nothing'"),
        (("key", "revoke", str(key_format.draw())), "no key is"),
        (("member", "remove", "carol"), "last owner"),
        (("member", "remove", "nobody"), "no member is 'nobody'"),
        (("key", "create", "x", "--expires", "soon"), "no duration"),
        (("key", "create", "x", "--scope", "all"), "inference"),
        (("key", "create", "alice"), "already"),  # a name that somebody had is nobody else's
        (("usage", "--accounts", "none"), "which accounts"),
    ):
        done = CliRunner().invoke(cli, arguments, prog_name="swarm")
        assert done.exit_code in (1, 2) and said in done.output, done.output


def test_a_key_is_revoked_by_itself_without_showing_it(swarm_home: Path) -> None:
    text = run("key", "create", "alice").strip()
    assert text not in run("key", "revoke", text) and listed()[0]["state"] == "revoked"
    unknown = str(key_format.draw())
    assert unknown.rpartition("-")[2] not in run("key", "revoke", unknown, code=2)


def test_usage_is_shown_by_key_server_and_day(swarm_home: Path) -> None:
    run("key", "create", "alice")
    store, key = store_of(accounts_of(None, NOBODY)), listed()[0]
    today = day_of(key["created"])
    tally = Tally()
    tally.add(Asked(today, 1, key["id"], "toy"), 2, 30, 4)
    tally.add(Asked(today, 0, "", "toy"), 1, 5, 6)
    tally.add_served(today, "toy", {"a" * 40: 700}, {"a" * 40: "server-1"})
    store.record(tally)
    store.close()
    shown = run("usage")
    assert "alice" in shown and "the gateway's own key" in shown and "30" in shown
    assert [line.split() for line in run("usage", "--by", "day").splitlines()][1:] == [[today, "3", "35", "10"]]
    assert "server-1" in run("usage", "--by", "server") and "700" in run("usage", "--by", "server")
    assert json.loads(run("usage", "--by", "server", "--json"))[0]["work"] == 700
    assert len(json.loads(run("usage", "--json"))) == 2


def test_accounts_are_used_once_anybody_has_one(swarm_home: Path) -> None:
    assert accounts_of(None, NOBODY) is None and not swarm_home.exists()  # nothing is made for nobody
    assert json.loads(run("key", "list", "--json")) == []
    assert accounts_of(None, NOBODY) is None
    run("key", "create", "alice")
    accounts = accounts_of(None, NOBODY)
    assert can_get_in(accounts, NOBODY) and accounts_of("none", NOBODY) is None
    store_of(accounts).close()
    run("key", "revoke", "alice")
    accounts = accounts_of(None, NOBODY)  # it does not fall open when the last key is gone
    assert accounts is not None and not can_get_in(accounts, NOBODY)
    accounts.store.close()
    (swarm_home / "accounts" / "accounts.db").write_text("damaged " * 200)
    for left in ("accounts.db-wal", "accounts.db-shm"):
        (swarm_home / "accounts" / left).unlink(missing_ok=True)
    with pytest.raises(SwarmError, match="cannot be used"):
        accounts_of(None, NOBODY)


def test_options_that_say_nothing_are_refused(swarm_home: Path) -> None:
    lonely = OpenIdOptions(openid_client_id="client")
    with pytest.raises(SwarmError, match="--openid URL"):
        provider(lonely)
    with pytest.raises(SwarmError, match="needs accounts"):
        accounts_of("none", OpenIdOptions("https://id.example", "c"))
    for wrong in ("*", "null", "https://a.example/path", "app.example"):
        with pytest.raises(SwarmError, match="origin"):
            origins_of((wrong,))
    assert origins_of(("https://a.example:8443",)) == ("https://a.example:8443",)


def test_a_gateway_that_others_reach_starts_with_a_key_of_an_account_and_not_without(swarm_home: Path) -> None:
    with Swarm(swarm_home) as swarm:
        refused = swarm.start("swarm-gateway", "--host", "0.0.0.0", "--port", "0")
        assert refused.wait_exit() == 2
        assert "swarm key create NAME --owner" in refused.errors and "SWARM_API_KEY" in refused.errors
        text = run("key", "create", "alice", "--owner").strip()
        for host in ("0.0.0.0", "127.0.0.1"):
            url = swarm.start("swarm-gateway", "--host", host, "--port", "0").wait_line("ready:").split()[-1]
            assert httpx.get(f"{url}/v1/models").status_code == 401
            assert httpx.get(f"{url}/v1/models", headers=bearer(text)).json()["data"] == []
            assert httpx.get(f"{url}/api/swarm", headers=bearer(text)).json()["can_invite"] is True
            made = httpx.post(f"{url}/api/tokens", json={}, headers=bearer(text), timeout=60)
            assert made.json()["token"].startswith("swarm1:")
        open_again = swarm.start("swarm-gateway", "--port", "0", "--accounts", "none").wait_line("ready:").split()[-1]
        assert httpx.get(f"{open_again}/v1/models").status_code == 200
        assert httpx.get(f"{open_again}/api/keys").json()["error"]["code"] == "no_accounts"
        assert httpx.get(f"{open_again}/api/account").json()["accounts"] is False


def test_the_work_of_real_servers_is_counted_and_outlives_the_gateway(swarm_home: Path, tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "llama")
    text = run("key", "create", "alice").strip()
    with Swarm(swarm_home) as swarm:
        gateway = swarm.start("swarm-gateway", "--port", "0")
        url = gateway.wait_line("ready:").split()[-1]
        swarm.serve(model, "0:2", options=["--name", "head"])
        swarm.serve(model, "2:6", options=["--name", "tail"])
        with httpx.Client(base_url=url, headers=bearer(text), timeout=60) as client:
            while not any(each["complete"] for each in client.get("/v1/models").json()["data"]):
                continue
            asked = {"model": "llama", "prompt": [5, 6, 7], "max_tokens": 4, "return_token_ids": True}
            for options in ({}, {"stream": True}):
                assert client.post("/v1/completions", json={**asked, **options, "ignore_eos": True}).status_code == 200
            embedding = {"model": "llama", "input": [5, 6, 7, 8, 9]}
            assert client.post("/v1/embeddings", json=embedding).status_code == 200
        gateway.process.terminate()  # at once, before the next time of writing
        assert gateway.wait_exit() == 0, gateway.errors
        assert text not in gateway.errors
    (used,) = json.loads(run("usage", "--json"))
    assert (used["name"], used["requests"], used["prompt_tokens"], used["generated_tokens"]) == ("alice", 3, 11, 8)
    work = {row["name"]: row["work"] for row in json.loads(run("usage", "--by", "server", "--json"))}
    computed = 2 * (3 + 4 - 1) + 5  # the last token of an answer is not computed
    assert work == {"head": 2 * computed, "tail": 4 * computed}
    assert listed()[0]["last_used"] is not None


def test_a_command_that_cannot_be_loaded_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extensions._BUILT_IN, "lost", "a_package_that_is_not_here:lost")
    assert "Cannot be used here" in run("--help")
    assert "comes from a_package_that_is_not_here" in run("lost", "--option", "x", code=1)
    assert isinstance(cli, click.Group) and "key" in cli.list_commands(click.Context(cli))


def test_a_gateway_needs_nothing_of_the_extras_until_it_is_asked_to(tmp_path: Path) -> None:
    extras = ("authlib", "itsdangerous", "joserfc", "psycopg")
    script = f"""
import sys
sys.modules.update(dict.fromkeys({extras}))
import openai_api.cli
from openai_api.accounts.sign_in import Provider, SignIn
from openai_api.accounts.database import connect
from swarm import SwarmError
for ask in (lambda: SignIn(Provider("https://id.example", "c"), None, "http://x"), lambda: connect("postgresql://h/d")):
    try:
        ask()
    except SwarmError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.partition("'layerswarm")[2] for line in done.stdout.splitlines()] == ["[openid]'", "[postgres]'"]


def test_the_database_is_loaded_only_by_commands_that_use_it() -> None:
    heavy = ("sqlalchemy", "alembic", "openai_api")
    script = f"import sys, swarm.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
