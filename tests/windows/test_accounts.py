"""Accounts as a user meets them, on Windows and everywhere else: the file, the commands, a gateway that uses them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.windows.programs import PATIENCE, Program


def output(*arguments: str, home: Path) -> str:
    with Program("swarm", *arguments, SWARM_HOME=str(home)) as program:
        assert program.finish() == 0, program.errors
        return "\n".join(program.output)


def status(url: str, key: str = "") -> int:
    request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def home(tmp_path: Path) -> Path:
    # A user's folder has spaces and letters of any language in its name.
    return tmp_path / "Jürgen Ω" / "home"


def test_keys_that_are_made_at_the_same_time_open_a_gateway_until_they_are_revoked(home: Path, tmp_path: Path) -> None:
    with ExitStack() as running:
        makers = [
            running.enter_context(Program("swarm", "key", "create", name, SWARM_HOME=str(home)))
            for name in ("alice", "bob", "carol")
        ]
        keys = ["sk-swarm-" + maker.line("sk-swarm-") for maker in makers]
    assert {key["name"] for key in json.loads(output("key", "list", "--json", home=home))} == {"alice", "bob", "carol"}
    with ExitStack() as running:
        directory = running.enter_context(
            Program("swarm", "directory", "--bind", "127.0.0.1:0", "--state-dir", str(tmp_path / "state"))
        )
        environment = {"SWARM_HOME": str(home), "SWARM_JOIN": directory.line("join:")}
        gateway = running.enter_context(Program("openai_api.cli", "--port", "0", **environment))
        url = gateway.line("ready:").split()[-1]
        assert [status(url, key) for key in ("", "sk-swarm-no", *keys)] == [401, 401, 200, 200, 200]
        output("key", "revoke", "alice", home=home)  # while the gateway has the file open
        assert "revoked" in output("key", "list", home=home)
        assert status(url, keys[1]) == 200
