"""The tables in SQLite and in PostgreSQL."""

from __future__ import annotations

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.operations import Operations
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import make_url

from openai_api.accounts.database import AccountsError, alembic_config, connect, writing
from openai_api.accounts.limits import KeyLimits
from openai_api.accounts.principals import SCOPES
from openai_api.accounts.schema import Base
from openai_api.accounts.store import Store
from openai_api.accounts.usage import Asked, Tally
from swarm import SwarmError

DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
NOW = 1_800_000_000.0


def test_migrations_from_nothing_give_the_tables_that_the_code_expects(database: str) -> None:
    engine = connect(database)
    with writing(engine).begin() as connection:
        command.check(alembic_config(connection))  # raises where they differ
        assert set(inspect(connection).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
    with writing(engine).begin() as connection:
        command.downgrade(alembic_config(connection), "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    engine.dispose()
    connect(database).dispose()  # and up again


def test_a_database_of_a_newer_version_is_refused(database: str) -> None:
    engine = connect(database)
    with writing(engine).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(SwarmError, match="newer version"):
        connect(database)


def test_programs_that_start_at_once_migrate_once(database: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        engines = list(pool.map(connect, [database] * 6))
    for engine in engines:
        assert Store(engine).people() == []
        engine.dispose()


def test_a_migration_that_fails_leaves_nothing_behind(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Operations, name: str, *columns: object, **options: object) -> None:
        if name == "visits":
            raise SwarmError("the disk is full")
        create(self, name, *columns, **options)

    create = Operations.create_table
    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_table", fail)
        with pytest.raises(SwarmError, match="full"):
            connect(database)
    engine = create_engine(make_url(database).set(drivername=DRIVERS[make_url(database).drivername]))
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    connect(database).dispose()


def test_people_keys_and_usage_are_kept(database: str) -> None:
    store = Store(connect(database))
    assert not store.in_use()
    alice = store.add_person("alice", "owner", NOW, "alice@example.org")
    bob = store.add_person("bob", "member", NOW)
    assert store.in_use() and store.person("alice@example.org") == alice
    for name, email in (("bob", None), ("other", "alice@example.org")):
        with pytest.raises(SwarmError, match="already"):
            store.add_person(name, "member", NOW, email)
    limits = KeyLimits(5, 10**12, 2)
    key, made = store.add_key(bob, "laptop", SCOPES, NOW, ["toy"], limits, NOW + 60)
    found = store.key(made.id)
    assert found == key and found.limits == limits and found.models == ("toy",) and found.person == bob
    assert [found.state(NOW), found.state(NOW + 60)] == ["good", "expired"]
    store.revoke_key(key.id, NOW + 1)
    store.revoke_key(key.id, NOW + 2)
    assert [each.revoked for each in store.keys(bob.id)] == [NOW + 1] and store.keys(alice.id) == []

    tally = Tally(last_used={key.id: NOW + 3})
    tally.add(Asked("2027-01-15", bob.id, key.id, "toy"), 1, 3 * 10**9, 4)
    tally.add_served("2027-01-15", "toy", {"s" * 40: 10**12}, {"s" * 40: "server-1\0\ud800"})  # no name that is kind
    store.record(tally)
    store.record(tally)
    assert store.tokens("2027-01-15", key.id) == 2 * (3 * 10**9 + 4) and store.tokens("2027-01-16", key.id) == 0
    (used,) = store.used("2027-01-01")
    assert (used["name"], used["person"], used["requests"], used["prompt_tokens"]) == ("laptop", "bob", 2, 6 * 10**9)
    assert store.used("2027-01-01", alice.id) == [] and store.used("2027-02-01") == []
    assert [(row["name"], row["work"]) for row in store.served("2027-01-01")] == [("server-1", 2 * 10**12)]
    assert store.keys()[0].last_used == NOW + 3

    with pytest.raises(SwarmError, match="last owner"):
        store.set_role(alice.id, "member")
    with pytest.raises(SwarmError, match="last owner"):
        store.remove_person(alice.id, NOW)
    store.set_role(bob.id, "owner")
    visit = store.begin_visit(bob.id, NOW, NOW + 100)
    assert store.visitor(visit, NOW) == store.person("bob") and store.visitor(visit, NOW + 100) is None
    assert store.visitor(visit + "x", NOW) is None
    store.remove_person(bob.id, NOW)
    assert store.visitor(visit, NOW) is None and [person.name for person in store.people()] == ["alice"]
    assert store.keys(bob.id)[0].person.removed == NOW
    store.close()


def test_gateways_that_count_at_the_same_time_lose_nothing(database: str) -> None:
    stores = [Store(connect(database)) for _ in range(4)]
    tally = Tally()
    for day in ("2027-01-15", "2027-01-16"):
        tally.add(Asked(day, 1, "k", "toy"), 1, 2, 3)
        tally.add_served(day, "toy", {"a": 5, "b": 7}, {})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: stores[number % 4].record(tally), range(20)))
    assert stores[0].tokens("2027-01-15", "k") == 20 * 5
    assert sum(row["work"] for row in stores[0].served("2027-01-01")) == 20 * 24
    for store in stores:
        store.close()


@pytest.mark.skipif(os.name != "posix", reason="Windows protects the folder by its owner's profile")
def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    store = Store(connect(f"sqlite:///{tmp_path / 'new' / 'accounts.db'}"))
    store.add_person("alice", "owner", NOW)
    files = list((tmp_path / "new").iterdir())
    assert len(files) == 3  # with what SQLite keeps beside it
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    store.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "no URL"),
        ("mysql://u:hidden@h/d", "'mysql'"),
        ("sqlite://", "'sqlite'"),
        ("postgresql://u:hidden@127.0.0.1:9/d", "cannot be used"),
    ],
)
def test_what_cannot_be_used_is_said_without_passwords(url: str, said: str) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(SwarmError, match=said) as raised:
        connect(url)
    assert "hidden" not in str(raised.value)


def test_a_file_that_is_none_of_these_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 100)
    with pytest.raises(SwarmError, match="file is not a database"):
        connect(f"sqlite:///{tmp_path / 'text'}")
    with pytest.raises(SwarmError, match="is a folder"):
        connect(f"sqlite:///{tmp_path}")


def test_a_locked_database_is_an_error_without_sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai_api.accounts.database.WAIT", 0.01)
    url = f"sqlite:///{tmp_path / 'accounts.db'}"
    store = Store(connect(url))
    locker = sqlite3.connect(make_url(url).database or "", isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    with pytest.raises(AccountsError) as raised:
        store.add_person("a secret name", "owner", NOW)
    assert str(raised.value) == "the accounts cannot be used now: database is locked"
    assert store.people() == []  # reading goes on beside a writer
    locker.close()
    store.add_person("alice", "owner", NOW)
    store.close()
