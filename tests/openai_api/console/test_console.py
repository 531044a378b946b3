"""What the console is told: the swarm as it is, what happens in it, and who computed an answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from openai_api.console.events import happened
from routing import wire
from routing.planning.routes import missing
from routing.security import short_id
from routing.view import View
from swarm import ServedModel
from swarm.system.identities import display_name
from tests.e2e.programs import Swarm
from tests.families import make_model
from tests.openai_api.engine import server


def models(*servers: wire.ServerInfo) -> list[ServedModel]:
    return [ServedModel("m", 30, 8192, servers, tuple(missing(servers, 30)))] if servers else []


def kinds(before: list[ServedModel], after: list[ServedModel]) -> list[str]:
    return [happening.kind for happening in happened(before, after, View(), View())]


def one(key: str, start: int, end: int, **fields: Any) -> wire.ServerInfo:
    return msgspec.structs.replace(server("m", 30, start, end), key=key * 40, name=f"server-{key}", **fields)


HEAD, TAIL = one("a", 0, 15), one("b", 15, 30)


def test_every_change_is_told_once_and_figures_are_not() -> None:
    joining = msgspec.structs.replace(TAIL, state="joining")
    assert kinds([], models(HEAD)) == ["ready", "gap"]
    assert kinds(models(HEAD), models(HEAD, joining)) == ["joined"]
    assert kinds(models(HEAD, joining), models(HEAD, TAIL)) == ["ready", "complete"]
    assert kinds(models(HEAD, TAIL), models(HEAD)) == ["left", "gap"]
    assert kinds(models(HEAD, TAIL), []) == ["left", "left", "gap"]
    busy = msgspec.structs.replace(TAIL, load=wire.ServerLoad(1, 3), throughput=9.0)
    assert kinds(models(HEAD, TAIL), models(HEAD, busy)) == []
    assert kinds(models(HEAD, TAIL), models(HEAD, one("b", 10, 30))) == ["moved"]
    assert kinds(models(HEAD, TAIL), models(HEAD, one("b", 15, 30, instance="2"))) == ["restarted"]
    assert kinds(models(HEAD, TAIL), models(HEAD, one("b", 15, 30, state="draining"))) == ["draining", "gap"]


def test_words_name_the_server_and_its_blocks() -> None:
    left, gap = happened(models(HEAD, TAIL), models(HEAD), View(), View())
    assert (left.text, left.mood) == ("server-b left; it had blocks 15:30 of m", "bad")
    assert (gap.text, gap.mood) == ("blocks 15:30 of m have no server", "bad")
    (_, nearer) = happened(models(one("a", 0, 15, state="joining")), models(HEAD), View(), View())
    assert (nearer.text, nearer.mood) == ("blocks 15:30 of m have no server", "plain")  # others come still
    (router,) = happened([], [], View(), View(routers={"r": wire.RouterInfo("r" * 40, "relay", ("h:1",))}))
    assert router.text == "the router relay is there"


@pytest.fixture
def swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Swarm]:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    with Swarm(tmp_path / "home") as swarm:
        yield swarm


@contextmanager
def events(url: str) -> Iterator[Iterator[tuple[str, Any]]]:
    with httpx.stream("GET", f"{url}/api/events", timeout=120) as response:
        assert response.headers["content-type"].startswith("text/event-stream")

        def read() -> Iterator[tuple[str, Any]]:
            kind = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield kind, json.loads(line.removeprefix("data: "))

        yield read()


def test_the_console_follows_a_swarm_and_knows_who_computed_an_answer(swarm: Swarm, tmp_path: Path) -> None:
    url = swarm.gateway()
    with events(url) as told:
        assert next(told)[0] == "past"
        kind, state = next(told)
        assert (kind, state["models"], state["can_invite"], state["local_only"]) == ("swarm", [], True, True)

        model = make_model("llama", tmp_path / "llama")
        _, tail = swarm.serve(model, "0:3", "3:6")
        seen = []
        for kind, content in told:
            if kind == "happened":
                seen.append(content["kind"])
            elif seen and seen[-1] == "complete":
                break
        (found,) = content["models"]
        assert found["complete"] and [server["start"] for server in found["servers"]] == [0, 3]
        assert not any(server["relayed"] for server in found["servers"])
        assert {server["name"] for server in found["servers"]} == {display_name("server-1"), display_name("server-2")}

        body = {"model": "llama", "prompt": [5, 6, 7], "max_tokens": 4, "stream": True, "return_token_ids": True}
        lines = httpx.post(f"{url}/v1/completions", json=body, timeout=60).text.splitlines()
        answer = json.loads(lines[0].removeprefix("data: "))["id"]
        (route,) = httpx.get(f"{url}/api/answers/{answer}").json()["routes"]
        assert [(hop["start"], hop["end"]) for hop in route] == [(0, 3), (3, 6)]
        assert [hop["key"] for hop in route] == [server["key"] for server in found["servers"]]
        assert httpx.get(f"{url}/api/answers/cmpl-none").status_code == 404
        servers = httpx.get(f"{url}/api/swarm").json()["models"][0]["servers"]
        assert all(server["round_trip"] > 0 for server in servers)
        assert [server["id"] for server in servers] == [short_id(server["key"]) for server in servers]

        threading.Thread(target=tail.kill).start()
        news = [next(content for kind, content in told if kind == "happened") for _ in range(2)]
        assert [each["kind"] for each in news] == ["left", "gap"]


def test_a_token_is_made_for_the_gateways_own_page_only(swarm: Swarm) -> None:
    url = swarm.gateway()
    made = httpx.post(f"{url}/api/tokens", json={"expires": 3600, "uses": 1}).json()
    assert made["token"].startswith("swarm1:") and made["token"] != swarm.token
    for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "http://elsewhere"}, {"referer": "http://elsewhere/"}):
        assert httpx.post(f"{url}/api/tokens", json={}, headers=headers).status_code == 403
    assert httpx.post(f"{url}/api/tokens", json={}, headers={"origin": url}).status_code == 200
    assert httpx.post(f"{url}/api/tokens", json={"expires": 1}).status_code == 400
    keyed = swarm.start("swarm-gateway", "--port", "0", "--api-key", "k").wait_line("ready:").split()[-1]
    headers = {"authorization": "Bearer k"}
    assert httpx.get(f"{keyed}/api/swarm", headers=headers).json()["can_invite"] is False
    refused = httpx.post(f"{keyed}/api/tokens", json={}, headers=headers)
    assert refused.status_code == 403 and "swarm token create" in refused.json()["error"]["message"]
    assert httpx.get(f"{keyed}/api/swarm").status_code == 401
