"""Key format: what an API key looks like; `sk-swarm-ID-SECRET`. Pure, but for the drawing of new ones.

The id finds the key and may be shown; the secret proves it. Only SHA-256 of the secret is stored. A slow hash, as
passwords need, would gain nothing: the secret is 200 random bits, not a word that can be guessed, and every request
would pay for it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

PREFIX = "sk-swarm-"
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"  # five bits each
_ID, _SECRET = 10, 40
_FORM = re.compile(rf"{PREFIX}([a-z2-7]{{{_ID}}})-([a-z2-7]{{{_SECRET}}})")


class KeyText(NamedTuple):
    """The two parts of a key."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.id}-{self.secret}"

    def __repr__(self) -> str:  # a key that lands in a log says nothing
        return f"KeyText({self.id})"


def draw() -> KeyText:
    """A new key."""
    return KeyText(_drawn(_ID), _drawn(_SECRET))


def parse(text: str) -> KeyText | None:
    """None: this is no key of an account."""
    match = _FORM.fullmatch(text)
    return KeyText(match[1], match[2]) if match else None


def digest(secret: str) -> bytes:
    """What is stored of a secret: 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


def proves(secret: str, stored: bytes) -> bool:
    """Whether a secret is the one that `stored` was made of; takes the same time whatever it is."""
    return hmac.compare_digest(digest(secret), stored)


def _drawn(length: int) -> str:
    return "".join(secrets.choice(_LETTERS) for _ in range(length))
