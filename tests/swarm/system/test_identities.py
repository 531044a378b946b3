"""Which identity a process takes, and what others call it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

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
