"""People, their keys, and who makes a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from openai_api.accounts.limits import KeyLimits

Role = Literal["owner", "member"]
SCOPES = ("inference", "console", "admin")
EVERYTHING = frozenset(SCOPES)
USING = frozenset({"inference", "console"})


@dataclass(frozen=True)
class Person:
    """`email` and `subject` are known of those who sign in; `subject` is what the provider calls them."""

    id: int
    name: str
    email: str | None
    role: Role
    created: float
    removed: float | None = None

    def shown(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "email": self.email, "role": self.role, "created": self.created}


@dataclass(frozen=True)
class Key:
    """An API key without its secret.

    Attributes:
        scopes: some of `SCOPES`.
        models: those that it may use; None: all.
    """

    id: str
    person: Person
    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[str] = USING
    models: tuple[str, ...] | None = None
    limits: KeyLimits = field(default_factory=KeyLimits)
    created: float = 0.0
    expires: float | None = None
    revoked: float | None = None
    last_used: float | None = None

    def state(self, now: float) -> Literal["good", "revoked", "expired", "removed"]:
        if self.revoked is not None:
            return "revoked"
        if self.person.removed is not None:
            return "removed"
        return "expired" if self.expires is not None and now >= self.expires else "good"

    def shown(self, now: float) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "person": self.person.name,
            "state": self.state(now),
            "scopes": [scope for scope in SCOPES if scope in self.scopes],
            "models": list(self.models) if self.models is not None else None,
            "requests_per_minute": self.limits.requests_per_minute,
            "tokens_per_day": self.limits.tokens_per_day,
            "sessions": self.limits.sessions,
            "created": self.created,
            "expires": self.expires,
            "last_used": self.last_used,
        }


@dataclass(frozen=True)
class Principal:
    """Principal: the caller of a request.

    Attributes:
        person: None: the person at this machine, or the holder of the gateway's own key.
        key: what the request came with; None: something else.
        invites: whether the caller may make join tokens.
    """

    person: Person | None = None
    key: Key | None = None
    scopes: frozenset[str] = EVERYTHING
    invites: bool = True

    @property
    def is_owner(self) -> bool:
        return self.person is not None and self.person.role == "owner"

    def allows(self, model: str) -> bool:
        return self.key is None or self.key.models is None or model in self.key.models


def of_person(person: Person, key: Key | None = None) -> Principal:
    """Principal of a person with an account, by a key or signed in."""
    scopes = EVERYTHING if key is None else key.scopes
    return Principal(person, key, scopes, invites=person.role == "owner" and "admin" in scopes)
