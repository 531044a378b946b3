"""`swarm doctor` on the machine that runs the tests, at directories over real sockets."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from routing.client import DirectoryClient
from routing.directory.directory import Directory
from routing.security import Identity, JoinToken
from swarm.cli.doctor import command
from swarm.cli.doctor.probes import system
from swarm.cli.doctor.probes.directory import ask_directories
from swarm.cli.main import cli
from swarm.system import identities
from tests.families import make_model
from tests.routing.material import PATIENCE, running


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with running(Directory("127.0.0.1:0", tmp_path / "state")) as directory:
        yield directory


def enrolled(directory: Directory, name: str) -> Identity:
    identity = Identity.create()
    with DirectoryClient(directory.token, identity, name, role="client", timeout=PATIENCE):
        return identity


def test_a_directory_says_who_is_in_and_enrols_nobody_who_asks(directory: Directory) -> None:
    inside, gone, new = enrolled(directory, "inside"), enrolled(directory, "gone"), Identity.create()
    directory._registry.expel(gone.public, 1.0)
    before = directory._registry.roster
    ((*answers,),) = ask_directories(directory.token, {"inside": inside, "gone": gone, "new": new})
    assert [(answer.name, answer.status) for answer in answers] == [
        ("inside", "member"),
        ("gone", "expelled"),
        ("new", "newcomer"),
    ]
    assert answers[0].dates  # of its enrolment, to compare the clock with
    assert [answer.status for answer in ask_directories(directory.token, {})[0]] == ["newcomer"]
    assert directory._registry.roster == before


def test_a_wrong_token_a_stranger_and_silence_are_told_apart(directory: Directory) -> None:
    token, stranger = directory.token, Identity.create()
    wrong = JoinToken(token.addresses, token.directory, stranger.secret)
    other = JoinToken(token.addresses, stranger.public, token.secret)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        nobody = JoinToken((f"127.0.0.1:{silent.getsockname()[1]}",), token.directory, token.secret)
        found = [ask_directories(each, {})[0][0].status for each in (wrong, other, nobody)]
    assert found == ["wrong token", "impostor", "unreachable"]


def test_doctor_tells_people_and_programs_and_ends_with_1_when_something_is_broken(
    directory: Directory, swarm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "USUAL_PORTS", ())
    with identities.hold_identity("server") as (_, identity), DirectoryClient(directory.token, identity, "x"):
        pass

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["doctor", *arguments])
        return result.exit_code, result.stdout

    code, text = run("--join", str(directory.token), "--json")
    told: dict[str, Any] = json.loads(text)
    by_subject = {finding["subject"]: finding for finding in told["findings"]}
    assert (code, told["broken"]) == (0, False), told
    assert by_subject["directory"]["what"].endswith("server-1 is admitted")
    assert {"Python", "memory", "disk", "torch", "GPU", "firewall", "keys", "clock", "console"} <= by_subject.keys()

    (swarm_home / "identities" / "server-2.key").write_text("nonsense")
    code, text = run("--join", str(directory.token))
    assert code == 1 and "server-2.key holds no key" in text and "delete" in text
    code, text = run("--join", "nonsense")
    assert code == 1 and "not a join token" in text


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has access lists instead: see test_checks.py")
def test_a_key_that_others_can_read_is_seen_only_where_its_folder_lets_them(swarm_home: Path) -> None:
    with identities.hold_identity("server"):
        pass
    (key,) = system.key_files()
    assert not system.readable_by_others(key)
    key.chmod(0o644)
    assert not system.readable_by_others(key)  # SWARM_HOME is closed
    swarm_home.chmod(0o755)
    assert system.readable_by_others(key)


def test_a_port_in_use_is_found_with_its_owner() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        number = taken.getsockname()[1]
        assert system.port_state(number) == "in use"
    assert system.port_state(number) == "free"


def test_the_size_of_a_model_is_read_without_torch(tmp_path: Path, swarm_home: Path) -> None:
    size = system.model_size(str(make_model("llama", tmp_path / "tiny", layers=6)))
    assert size is not None and size[0] > 10_000 and size[1] == 6
    assert system.model_size("nobody/nothing") is None
