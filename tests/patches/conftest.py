"""Peers that call each other as upstream does, at a real directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from patches.network.dht import DHT
from routing.directory.directory import Directory
from tests.routing.material import running

Join = Callable[..., DHT]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    with running(Directory("127.0.0.1:0", tmp_path / "directory")) as started:
        yield started


@pytest.fixture
def join(directory: Directory) -> Iterator[Join]:
    """Starts peers and closes them at the end."""
    with ExitStack() as peers:

        def start(**options: object) -> DHT:
            dht = DHT([str(directory.token)], start=True, **options)  # type: ignore[arg-type]
            peers.callback(dht.shutdown)
            return dht

        yield start
