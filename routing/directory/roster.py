"""Roster: what all directories of a swarm must agree on in the end; who is a member, who was expelled, which join
tokens are good, and where the directories are.

Directories have no consensus. Each takes in what the others say, and the result does not depend on the order, or on how
often (a state-based CRDT, https://hal.inria.fr/inria-00555588): members, tokens and expulsions are only ever added,
revoking sets a date that stays, and an expulsion wins over every other record of its key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import msgspec

from routing import wire
from routing.security import short_id

Record = TypeVar("Record", wire.Member, wire.DirectoryInfo, wire.TokenRecord, wire.Expulsion)


@dataclass(frozen=True)
class Roster:
    """Records by key. The mappings are never changed in place; no expelled peer is in `members` or `sites`."""

    members: Mapping[str, wire.Member] = field(default_factory=dict)
    sites: Mapping[str, wire.DirectoryInfo] = field(default_factory=dict)
    enrolments: Mapping[str, wire.TokenRecord] = field(default_factory=dict)
    expelled: Mapping[str, wire.Expulsion] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        members: Iterable[wire.Member] = (),
        sites: Iterable[wire.DirectoryInfo] = (),
        enrolments: Iterable[wire.TokenRecord] = (),
        expelled: Iterable[wire.Expulsion] = (),
    ) -> Roster:
        return cls().merge(
            cls(
                {member.key: member for member in members},
                {site.key: site for site in sites},
                {enrolment.key: enrolment for enrolment in enrolments},
                {expulsion.key: expulsion for expulsion in expelled},
            )
        )

    def merge(self, other: Roster) -> Roster:
        """What both know. `self` where `other` has nothing new."""
        expelled = _merge(self.expelled, other.expelled)
        members = _without(_merge(self.members, other.members), expelled)
        sites = _without(_merge(self.sites, other.sites), expelled)
        enrolments = _merge(self.enrolments, other.enrolments)
        merged = Roster(members, sites, enrolments, expelled)
        return self if merged == self else merged

    def since(self, before: Roster) -> Roster:
        """The records that `before` does not have like this."""
        return Roster(
            _new(self.members, before.members),
            _new(self.sites, before.sites),
            _new(self.enrolments, before.enrolments),
            _new(self.expelled, before.expelled),
        )

    @cached_property
    def digest(self) -> bytes:
        """The same for the same records."""
        tables = (self.members, self.sites, self.enrolments, self.expelled)
        content = [[table[key] for key in sorted(table)] for table in tables]
        return hashlib.sha256(msgspec.msgpack.encode(content)).digest()

    def may_enrol(self, key: str, date: float) -> bool:
        """Whether `key` is the public half of a join token that lets a peer in."""
        enrolment = self.enrolments.get(key)
        return enrolment is not None and self.trouble(enrolment, date) == ""

    def trouble(self, enrolment: wire.TokenRecord, date: float) -> str:
        """Why a join token lets no peer in any longer: `revoked`, `expired`, `used up`; empty: it does."""
        if enrolment.revoked is not None:
            return "revoked"
        if enrolment.expires is not None and date >= enrolment.expires:
            return "expired"
        if enrolment.uses and self.used(enrolment) >= enrolment.uses:
            return "used up"
        return ""

    def used(self, enrolment: wire.TokenRecord) -> int:
        """How many have enrolled with a join token, those who were expelled included."""
        token = short_id(enrolment.key)
        tables = (self.members, self.sites, self.expelled)
        return sum(record.token == token for table in tables for record in table.values())


def _merge(mine: Mapping[str, Record], theirs: Mapping[str, Record]) -> Mapping[str, Record]:
    added = {key: record if key not in mine else _later_record(mine[key], record) for key, record in theirs.items()}
    return {**mine, **added}


def _later_record(one: Record, other: Record) -> Record:
    """Which of two records of a key holds, whichever came first."""
    if one == other:
        return one
    match one, other:
        case wire.TokenRecord(), wire.TokenRecord():
            revoked = [date for date in (one.revoked, other.revoked) if date is not None]
            first = min(one, other, key=_order)
            return msgspec.structs.replace(first, revoked=min(revoked, default=None))
        case wire.DirectoryInfo(), wire.DirectoryInfo():
            return max(one, other, key=lambda site: (site.updated, _order(site)))
        case wire.Member(), wire.Member():
            return min(one, other, key=lambda member: (member.enrolled, _order(member)))
        case _:
            return min(one, other, key=_order)


def _order(record: Record) -> bytes:
    if isinstance(record, wire.TokenRecord):
        record = msgspec.structs.replace(record, revoked=None)
    return msgspec.msgpack.encode(record)


def _without(table: Mapping[str, Record], expelled: Mapping[str, wire.Expulsion]) -> Mapping[str, Record]:
    if table.keys().isdisjoint(expelled.keys()):
        return table
    return {key: record for key, record in table.items() if key not in expelled}


def _new(table: Mapping[str, Record], before: Mapping[str, Record]) -> Mapping[str, Record]:
    return {key: record for key, record in table.items() if before.get(key) != record}
