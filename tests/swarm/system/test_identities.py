"""Which identity a process takes, and what others call it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from swarm.errors import SwarmError
from swarm.system import identities
from swarm.system.identities import display_name, hold_identity, own_keys


def test_each_process_has_an_identity_of_its_own_that_it_finds_again(swarm_home: Path) -> None:
    with hold_identity("server") as (one, first), hold_identity("server") as (other, second):
        assert (one, other) == ("server-1", "server-2") and first.public != second.public
    with hold_identity("server") as (_, again), hold_identity("server", "my laptop") as (named, _):
        assert again == first and named == "my laptop"
    assert {first.public, second.public} < own_keys()


@pytest.mark.parametrize(
    ("node", "names"), [("laptop.example.org", ("laptop", "laptop-2")), ("", ("machine", "machine-2"))]
)
def test_a_server_is_known_by_its_machine(monkeypatch: pytest.MonkeyPatch, node: str, names: tuple[str, str]) -> None:
    monkeypatch.setattr(platform, "node", lambda: node)
    assert (display_name("server-1"), display_name("server-2")) == names


def test_a_name_that_is_taken_and_a_machine_that_is_full_are_told_apart(
    swarm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "MAX_IDENTITIES", 1)
    with hold_identity("server", "laptop"), pytest.raises(SwarmError, match="'laptop' runs on this machine already"):
        hold_identity("server", "laptop").__enter__()
    with hold_identity("server"), pytest.raises(SwarmError, match="the limit of 1 processes"):
        hold_identity("server").__enter__()
