"""The accounts in their database. Every method blocks its thread, and raises `AccountsError` where that fails."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session

from openai_api.accounts import key_format
from openai_api.accounts.database import clear_errors, writing
from openai_api.accounts.key_format import KeyText
from openai_api.accounts.limits import KeyLimits
from openai_api.accounts.principals import Key, Person, Role
from openai_api.accounts.schema import KeyRow, PersonRow, ServedRow, UsageRow, VisitRow
from openai_api.accounts.usage import Tally
from swarm.errors import SwarmError

Row = dict[str, Any]


class Store:
    """Store of accounts: people, keys, visits and usage, in a database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing = writing(engine)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _reads(self) -> Iterator[Session]:
        with clear_errors(), Session(self._engine) as session:
            yield session

    @contextmanager
    def _writes(self) -> Iterator[Session]:
        with clear_errors(), Session(self._writing) as session, session.begin():
            yield session

    def in_use(self) -> bool:
        """Whether a person was ever given an account here."""
        with self._reads() as session:
            return session.scalar(select(PersonRow.id).limit(1)) is not None

    # --- people ------------------------------------------------------------------------------------------------------

    def people(self) -> list[Person]:
        """Those who are there, by name."""
        with self._reads() as session:
            rows = session.scalars(select(PersonRow).where(PersonRow.removed.is_(None)).order_by(PersonRow.name))
            return [_person(row) for row in rows]

    def person(self, wanted: str) -> Person | None:
        """By name or e-mail address."""
        with self._reads() as session:
            row = _find(session, wanted)
            return _person(row) if row else None

    def add_person(self, name: str, role: Role, now: float, email: str | None = None) -> Person:
        """Raises: SwarmError: the name or the address is taken."""
        with self._writes() as session:
            for each in filter(None, (name, email)):
                if _find(session, each, removed=True):
                    raise SwarmError(f"there is, or was, a member called {each!r} already: choose another name")
            row = PersonRow(name=name, email=email, role=role, created=now)
            session.add(row)
            session.flush()
            return _person(row)

    def set_role(self, person: int, role: Role) -> None:
        """Raises: SwarmError: there would be no owner any longer."""
        with self._writes() as session:
            if role != "owner":
                _require_other_owner(session, person)
            session.execute(update(PersonRow).where(PersonRow.id == person).values(role=role))

    def remove_person(self, person: int, now: float) -> None:
        """Their keys and visits are good for nothing from now on. Raises: SwarmError: as `set_role`."""
        with self._writes() as session:
            _require_other_owner(session, person)
            session.execute(update(PersonRow).where(PersonRow.id == person).values(removed=now))
            for visit in session.scalars(select(VisitRow).where(VisitRow.person_id == person)):
                session.delete(visit)

    # --- keys --------------------------------------------------------------------------------------------------------

    def keys(self, person: int | None = None) -> list[Key]:
        """Of one person, or all; the oldest first."""
        with self._reads() as session:
            wanted = select(KeyRow).order_by(KeyRow.created, KeyRow.id)
            if person is not None:
                wanted = wanted.where(KeyRow.person_id == person)
            return [_key(row) for row in session.scalars(wanted)]

    def key(self, id: str) -> Key | None:
        with self._reads() as session:
            row = session.get(KeyRow, id)
            return _key(row) if row else None

    def add_key(
        self,
        person: Person,
        name: str,
        scopes: Collection[str],
        now: float,
        models: Sequence[str] | None = None,
        limits: KeyLimits | None = None,
        expires: float | None = None,
    ) -> tuple[Key, KeyText]:
        """A new key, and its text, which is never to be had again."""
        text, limits = key_format.draw(), limits or KeyLimits()
        with self._writes() as session:
            row = KeyRow(
                id=text.id,
                person_id=person.id,
                name=name,
                digest=key_format.digest(text.secret),
                scopes=sorted(scopes),
                models=list(models) if models is not None else None,
                requests_per_minute=limits.requests_per_minute,
                tokens_per_day=limits.tokens_per_day,
                sessions=limits.sessions,
                created=now,
                expires=expires,
            )
            session.add(row)
            session.flush()
            return _key(row), text

    def revoke_key(self, id: str, now: float) -> None:
        with self._writes() as session:
            session.execute(update(KeyRow).where(KeyRow.id == id, KeyRow.revoked.is_(None)).values(revoked=now))

    # --- signing in --------------------------------------------------------------------------------------------------

    def sign_in(self, subject: str, email: str, name: str, now: float, owner: bool, admitted: bool) -> Person | None:
        """The member that the provider names; a new one where `admitted`. None: a person who may not come in.

        Args:
            subject: what the provider calls the person for ever.
            email: verified by the provider; leads to a person who was added by it and has not signed in yet.
            owner: make the person an owner.
        """
        with self._writes() as session:
            row = session.scalar(select(PersonRow).where(PersonRow.subject == subject))
            row = row or session.scalar(select(PersonRow).where(PersonRow.email == email, PersonRow.subject.is_(None)))
            if row is None:
                if not (owner or admitted) or _find(session, email, removed=True):
                    return None
                taken = _find(session, name, removed=True) is not None
                row = PersonRow(name=email if taken or not name else name, email=email, role="member", created=now)
                session.add(row)
            if row.removed is not None:
                return None
            row.subject = subject
            if owner:
                row.role = "owner"
            session.flush()
            return _person(row)

    def begin_visit(self, person: int, now: float, expires: float) -> str:
        """What the browser's cookie is to hold: 256 random bits."""
        token = secrets.token_urlsafe(32)
        with self._writes() as session:
            for old in session.scalars(select(VisitRow).where(VisitRow.expires <= now)):
                session.delete(old)
            session.add(VisitRow(digest=_visit_digest(token), person_id=person, expires=expires))
        return token

    def visitor(self, token: str, now: float) -> Person | None:
        with self._reads() as session:
            row = session.get(VisitRow, _visit_digest(token))
            if row is None or row.expires <= now or row.person.removed is not None:
                return None
            return _person(row.person)

    def end_visit(self, token: str) -> None:
        with self._writes() as session:
            if row := session.get(VisitRow, _visit_digest(token)):
                session.delete(row)

    # --- usage -------------------------------------------------------------------------------------------------------

    def record(self, tally: Tally) -> None:
        """Add it to what is there, in one transaction."""
        with self._writes() as session:
            for asked, (requests, prompt, generated) in sorted(tally.used.items()):
                keys = {"day": asked.day, "person_id": asked.person, "key_id": asked.key, "model": asked.model}
                counts = {"requests": requests, "prompt_tokens": prompt, "generated_tokens": generated}
                self._add(session, UsageRow, keys, counts)
            for served, work in sorted(tally.served.items()):
                keys = {"day": served.day, "server": served.server, "model": served.model}
                self._add(session, ServedRow, keys, {"work": work}, {"name": tally.names.get(served.server, "")[:200]})
            for key, date in sorted(tally.last_used.items()):
                session.execute(update(KeyRow).where(KeyRow.id == key).values(last_used=date))

    def _add(
        self, session: Session, row: type[DeclarativeBase], keys: Row, counts: Row, others: Row | None = None
    ) -> None:
        """The dialects spell it alike: insert, or add to the row that is there."""
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        statement = insert(row).values(**keys, **counts, **(others or {}))
        added = {name: getattr(row, name) + statement.excluded[name] for name in counts}
        session.execute(statement.on_conflict_do_update(index_elements=list(keys), set_={**added, **(others or {})}))

    def tokens(self, day: str, key: str) -> int:
        """That a key has used on a day."""
        total = func.coalesce(func.sum(UsageRow.prompt_tokens + UsageRow.generated_tokens), 0)
        with self._reads() as session:
            return int(session.scalar(select(total).where(UsageRow.day == day, UsageRow.key_id == key)) or 0)

    def used(self, since: str, person: int | None = None) -> list[Row]:
        """By day, key and model, from the day `since` on; of one person, or all."""
        wanted = (
            select(UsageRow, KeyRow.name, PersonRow.name)
            .outerjoin(KeyRow, KeyRow.id == UsageRow.key_id)
            .outerjoin(PersonRow, PersonRow.id == UsageRow.person_id)
            .where(UsageRow.day >= since)
            .order_by(UsageRow.day, UsageRow.person_id, UsageRow.key_id, UsageRow.model)
        )
        if person is not None:
            wanted = wanted.where(UsageRow.person_id == person)
        with self._reads() as session:
            return [
                {
                    "day": row.day,
                    "key": row.key_id,
                    "name": key or ("signed in" if row.person_id else "the gateway's own key"),
                    "person": owner or "",
                    "model": row.model,
                    "requests": row.requests,
                    "prompt_tokens": row.prompt_tokens,
                    "generated_tokens": row.generated_tokens,
                }
                for row, key, owner in session.execute(wanted)
            ]

    def served(self, since: str) -> list[Row]:
        """By day, server and model, from the day `since` on."""
        wanted = (
            select(ServedRow).where(ServedRow.day >= since).order_by(ServedRow.day, ServedRow.name, ServedRow.model)
        )
        with self._reads() as session:
            return [
                {"day": row.day, "server": row.server, "name": row.name, "model": row.model, "work": row.work}
                for row in session.scalars(wanted)
            ]


def _find(session: Session, wanted: str, removed: bool = False) -> PersonRow | None:
    found = select(PersonRow).where((PersonRow.name == wanted) | (PersonRow.email == wanted)).order_by(PersonRow.id)
    return session.scalars(found if removed else found.where(PersonRow.removed.is_(None))).first()


def _require_other_owner(session: Session, person: int) -> None:
    owners = set(session.scalars(select(PersonRow.id).where(PersonRow.role == "owner", PersonRow.removed.is_(None))))
    if owners == {person}:
        raise SwarmError("this is the last owner: make another member one first")


def _person(row: PersonRow) -> Person:
    return Person(row.id, row.name, row.email, cast(Role, row.role), row.created, row.removed)


def _key(row: KeyRow) -> Key:
    return Key(
        id=row.id,
        person=_person(row.person),
        name=row.name,
        digest=row.digest,
        scopes=frozenset(row.scopes),
        models=tuple(row.models) if row.models is not None else None,
        limits=KeyLimits(row.requests_per_minute, row.tokens_per_day, row.sessions),
        created=row.created,
        expires=row.expires,
        revoked=row.revoked,
        last_used=row.last_used,
    )


def _visit_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
