"""Codes: why something is refused or has failed, one enumeration for each message that carries one.

`docs/protocol.md` says what each means.
"""

from __future__ import annotations

from enum import StrEnum


class RefusalCode(StrEnum):
    """Codes of `wire.Refused`. On the wire it is a text, so that a code which only a newer peer knows is no error."""

    BAD_ROUTE = "bad_route"
    BUSY = "busy"
    CALL = "call"
    CONFLICT = "conflict"
    EXPELLED = "expelled"
    FULL = "full"
    LEAVING = "leaving"
    MALFORMED = "malformed"
    NOT_A_MEMBER = "not_a_member"
    NOT_YOURS = "not_yours"
    OLD_EPOCH = "old_epoch"
    TOO_LONG = "too_long"
    TOO_MANY = "too_many"
    UNKNOWN = "unknown"
    UNKNOWN_FILE = "unknown_file"
    UNKNOWN_MODEL = "unknown_model"


class FailureCode(StrEnum):
    """Codes of `wire.Failed`: what the client does next depends on it, so a peer sends no others."""

    BAD_INPUT = "bad_input"
    COMPUTE = "compute"
    EVICTED = "evicted"
    GAP = "gap"
    LEAVING = "leaving"
    LOST_HOP = "lost_hop"
    MEMORY = "memory"
