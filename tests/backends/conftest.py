"""Models that the tests of backends share, each made once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends import Backend, BackendError, registry
from tests.families import make_model

MakeModel = Callable[[str], Path]


def run_on_demand() -> None:
    """Skip what torch exports for onnx, unless everything is wanted."""
    if not os.environ.get("SWARM_TEST_ALL"):
        pytest.skip("torch exports it in half a minute, and others in the same way: SWARM_TEST_ALL=1 runs it")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Products of tiny matrices are slower on several threads."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """The folder of a tiny model of a family."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.fixture(params=registry.names())
def backend(request: pytest.FixtureRequest, model_of: MakeModel) -> Backend:
    """Every backend that is installed and reads Hugging Face folders."""
    try:
        found = registry.find(request.param)
        found.describe(model_of("llama"))
    except BackendError as error:
        pytest.skip(f"{request.param} cannot take it: {error}")
    return found
