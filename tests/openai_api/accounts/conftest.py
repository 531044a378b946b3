"""Accounts in databases of their own, and a gateway in front of a toy swarm."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from openai_api.accounts.access import Accounts
from openai_api.accounts.database import connect
from openai_api.accounts.store import Store
from openai_api.http.server import listen
from tests.openai_api.accounts.toy import MODEL, Toy
from tests.openai_api.conftest import serving


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0  # 2027-01-15 08:00 UTC

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A real PostgreSQL server of the tests' own; gives its URL. Left out, with the reason, where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        pytest.skip("no PostgreSQL server is here (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra 'postgres')")
    # Not below pytest's own folder, which every pytest that starts closes to other users.
    with tempfile.TemporaryDirectory(prefix="swarm-postgres-") as folder, listen("127.0.0.1", 0) as free:
        options: dict[str, Any] = {"check": True, "capture_output": True, "cwd": folder}
        if hasattr(os, "getuid") and os.getuid() == 0:  # PostgreSQL does not run as root
            options["user"] = "postgres"
            shutil.chown(folder, "postgres")
        port = free.getsockname()[1]
        free.close()
        data, control = str(Path(folder) / "data"), str(Path(initdb).with_name("pg_ctl"))
        subprocess.run([initdb, "-D", data, "-U", "swarm", "-A", "trust", "-E", "UTF8", "--no-sync"], **options)
        settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = str(Path(folder) / "log")
        subprocess.run([control, "-D", data, "-o", settings, "-l", log, "-w", "start"], **options)
        yield f"postgresql://swarm:secret@127.0.0.1:{port}"
        subprocess.run([control, "-D", data, "-m", "immediate", "-w", "stop"], **options)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a folder' / 'accounts.db'}"
    import psycopg

    server, name = request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    return f"{server}/{name}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(connect(f"sqlite:///{tmp_path / 'accounts.db'}"))
    yield store
    store.close()


@pytest.fixture
def accounts(store: Store, clock: Clock) -> Accounts:
    return Accounts(store, clock)


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def gateway(toy: Toy, accounts: Accounts) -> Iterator[Callable[..., str]]:
    """Starts gateways that use the accounts; gives their URLs."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serving(toy, accounts=accounts, **options))


def bearer(key: object) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def ask(url: str, key: object, **body: Any) -> httpx.Response:
    """Four tokens that follow three."""
    asked = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 4, "return_token_ids": True, **body}
    return httpx.post(f"{url}/v1/completions", json=asked, headers=bearer(key), timeout=60)
