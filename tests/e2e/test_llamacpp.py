"""The promises of sessions and of failover again, with every server's span in llama.cpp.

The tests are those of the other files, imported: here each server is started with `--backend llama_cpp`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from backends import BackendError
from backends.llamacpp import library
from swarm import SwarmClient
from tests.e2e import programs
from tests.e2e.programs import Swarm
from tests.e2e.test_departures import *  # noqa: F403
from tests.e2e.test_failures import *  # noqa: F403
from tests.e2e.test_failures import home, llama  # noqa: F401
from tests.e2e.test_tokens import (  # noqa: F401
    test_a_server_without_blocks_fills_the_gap,
    test_async_client_streams_and_stops_without_a_trace,
)
from tests.families import VOCABULARY, make_model, reference_tokens


def is_missing() -> str:
    try:
        library.find()
    except BackendError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(is_missing()), reason=is_missing() or "it is there")


@pytest.fixture(autouse=True)
def over_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "BACKEND", ("--backend", "llama_cpp"))
