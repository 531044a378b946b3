"""What all tests may use: a home of their own, and the real model, made once and kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Time never decides a test: these machines are busy.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture
def swarm_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `SWARM_HOME`, also for the processes that the test starts."""
    home = tmp_path / "home"
    monkeypatch.setenv("SWARM_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, kept below `SWARM_TEST_HOME`, or where `swarm` itself keeps it."""
    from swarm.models.resolve import resolve  # here, so that the tests of routing and backends need no programs

    with pytest.MonkeyPatch.context() as patch:
        if kept := os.environ.get("SWARM_TEST_HOME"):
            patch.setenv("SWARM_HOME", kept)
        return resolve("smollm2-135m").path
