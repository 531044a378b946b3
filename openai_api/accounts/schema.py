"""The tables. A change here needs a migration (`openai_api/accounts/migrations`); a test compares the two.

Dates are seconds since the epoch, days are text (`2026-11-21`, of UTC): both mean the same in every database.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, LargeBinary, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NAME = 200  # characters, at most
_NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=_NAMING)


class PersonRow(Base):
    """`subject`: issuer and subject of the OpenID provider, once the person has signed in."""

    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME), unique=True)
    email: Mapped[str | None] = mapped_column(String(320), unique=True)
    subject: Mapped[str | None] = mapped_column(String(600), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    created: Mapped[float] = mapped_column(Double)
    removed: Mapped[float | None] = mapped_column(Double)


class KeyRow(Base):
    """`digest`: SHA-256 of the secret."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"), index=True)
    name: Mapped[str] = mapped_column(String(NAME))
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    models: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    requests_per_minute: Mapped[int | None]
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    sessions: Mapped[int | None]
    created: Mapped[float] = mapped_column(Double)
    expires: Mapped[float | None] = mapped_column(Double)
    revoked: Mapped[float | None] = mapped_column(Double)
    last_used: Mapped[float | None] = mapped_column(Double)
    person: Mapped[PersonRow] = relationship(lazy="joined", innerjoin=True)


class VisitRow(Base):
    """Browser that has signed in. `digest`: SHA-256 of what its cookie holds."""

    __tablename__ = "visits"

    digest: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"), index=True)
    expires: Mapped[float] = mapped_column(Double)
    person: Mapped[PersonRow] = relationship(lazy="joined", innerjoin=True)


class UsageRow(Base):
    """Usage row: what was asked for. No foreign keys: what was used stays when people go. Person 0, key '': without an
    account.
    """

    __tablename__ = "usage"

    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    person_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    model: Mapped[str] = mapped_column(String(256), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    generated_tokens: Mapped[int] = mapped_column(BigInteger)


class ServedRow(Base):
    """Served row: what a server computed. `work`: tokens times blocks; `server`: its public key."""

    __tablename__ = "served"

    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    server: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(256), primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME))
    work: Mapped[int] = mapped_column(BigInteger)
