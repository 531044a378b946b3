"""Opens the database of the accounts and brings its tables up to date."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from swarm.errors import SwarmError
from swarm.system import home

WAIT = 5.0  # s for another program that writes to the same SQLite file, or for PostgreSQL to take a connection
_LOCK = 7_236_401  # any number: programs that migrate the same PostgreSQL database wait for one another by it


class AccountsError(SwarmError):
    """The accounts cannot be read or written now. The text names neither SQL nor a password."""


def default_path() -> Path:
    """Where the accounts are unless another place is named."""
    return home.home() / "accounts" / "accounts.db"


def connect(given: str | None) -> Engine:
    """An engine on migrated tables. A SQLite file is made where there is none, for its owner only.

    Args:
        given: a URL (`sqlite:///...`, `postgresql://...`); None: the file at `default_path`.

    Raises:
        SwarmError: the URL is not understood, the database cannot be reached, or is no database of these accounts.
    """
    url = _url(given)
    where = url.render_as_string(hide_password=True)
    if url.drivername == "sqlite":
        where = url.database or ""
        _prepare_file(Path(where))
    try:
        engine = _engine(url)
    except ImportError as error:
        raise SwarmError("accounts in PostgreSQL need psycopg: python -m pip install 'layerswarm[postgres]'") from error
    try:
        with writing(engine).begin() as connection:
            migrate(connection)
    except CommandError as error:
        engine.dispose()
        raise SwarmError(
            f"the accounts in {where} were written by a newer version of layerswarm ({error}): install that one"
        ) from error
    except (SQLAlchemyError, OSError) as error:
        engine.dispose()
        raise SwarmError(f"the accounts in {where} cannot be used: {reason(error)}") from error
    return engine


def writing(engine: Engine) -> Engine:
    """The same database, for transactions that write: SQLite takes its lock when one begins, or waits for it. One that
    begins by reading could not wait.
    """
    return engine.execution_options(writes=True)


def migrate(connection: Connection) -> None:
    """Bring the tables to the newest form, within the connection's transaction: it happens wholly or not at all."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", "openai_api.accounts:migrations")
    config.attributes["connection"] = connection
    return config


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn the database's errors into an `AccountsError`, without the statement and its parameters."""
    try:
        yield
    except SQLAlchemyError as error:
        raise AccountsError(f"the accounts cannot be used now: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The first line of what the database itself said; psycopg and sqlite3 put no password into it."""
    said = str(getattr(error, "orig", None) or error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _url(given: str | None) -> URL:
    if given is None:
        return URL.create("sqlite", database=str(default_path()))
    forms = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
    try:
        url = make_url(given)
    except ArgumentError:
        raise SwarmError(f"--accounts is no URL of a database: write {forms}", 2) from None
    match url.drivername:
        case "sqlite" | "sqlite+pysqlite" if url.database and url.database != ":memory:":
            return URL.create("sqlite", database=str(Path(url.database).expanduser().absolute()))
        case "postgresql" | "postgres" | "postgresql+psycopg":
            return url.set(drivername="postgresql+psycopg")
        case other:
            raise SwarmError(f"--accounts: a database of the kind {other!r} cannot be used: write {forms}", 2)


def _engine(url: URL) -> Engine:
    # Parameters hold digests of keys and e-mail addresses: they belong in no message.
    if url.drivername != "sqlite":
        arguments = {"connect_timeout": int(WAIT), "options": "-c statement_timeout=10000"}
        return create_engine(url, hide_parameters=True, pool_pre_ping=True, pool_size=4, connect_args=arguments)
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": WAIT})
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = None  # the transactions are SQLAlchemy's, also around changes of tables
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_file(path: Path) -> None:
    """Made here, because SQLite would let others read it; what SQLite puts beside it has the same permissions."""
    if path == default_path():
        home.folder(path.parent.name)
    with home.disk_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir():
            raise SwarmError(f"{path} is a folder, a file is needed there")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
