"""Security: who may speak; identities, join tokens and the authenticator that lets only known keys in.

Every connection is encrypted and authenticated by CurveZMQ (https://rfc.zeromq.org/spec/26/). A peer is its CURVE
public key; a `ZapAuthenticator` answers ZAP (https://rfc.zeromq.org/spec/27/) for each handshake, so a peer whose key
is not admitted never gets a message through.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import zmq
from zmq.auth import Authenticator

ZAP_DOMAIN = "swarm"
TOKEN_PREFIX = "swarm1:"
ADMIN_PREFIX = "swarm-admin1:"


class SecurityError(Exception):
    """A key file or a join token that cannot be used. The text is for the user."""


def short_id(key: str) -> str:
    """What people call a peer or a join token: eight hexadecimal digits that follow from its public key."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Identity:
    """A CURVE key pair in Z85. `public` names the peer; `secret` is never shown."""

    public: str
    secret: bytes = field(repr=False)

    @classmethod
    def create(cls) -> Identity:
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret)

    @classmethod
    def from_secret(cls, secret: bytes) -> Identity:
        """Raises: SecurityError: this is no CURVE secret key."""
        try:
            return cls(zmq.curve_public(secret).decode(), secret)
        except (zmq.ZMQError, ValueError) as error:
            raise SecurityError("this is not a CURVE secret key") from error

    @classmethod
    def load(cls, path: Path) -> Identity:
        """The identity in `path`, made on first use in a file that only its owner can read.

        Raises:
            SecurityError: the file holds no key.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # O_EXCL decides between two processes that start at once.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            try:
                return cls.from_secret(path.read_bytes().strip())
            except SecurityError:
                raise SecurityError(f"{path} holds no key: delete it to get a new identity") from None
        identity = cls.create()
        with os.fdopen(descriptor, "wb") as file:
            file.write(identity.secret + b"\n")
        return identity


class _TokenBody(msgspec.Struct, array_like=True, frozen=True):
    addresses: tuple[str, ...]
    directory: str
    secret: bytes
    expires: float | None = None
    others: tuple[tuple[str, tuple[str, ...]], ...] = ()  # further directories; older programs leave them out


class DirectoryAddress(NamedTuple):
    """A directory's public key, so that no peer can pretend to be it, and its addresses in the order to try them."""

    key: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class JoinToken:
    """Everything that a machine needs to join a swarm, as one string.

    Attributes:
        addresses: `host:port` of the directory, in the order to try them.
        directory: its public key.
        secret: a CURVE secret key that the directory admits for enrolment only. It proves the right to enrol without
            being sent.
        expires: seconds since the epoch, or None. The directory decides; the date here makes the message clear.
        others: the swarm's other directories, any of which will do as well.
    """

    addresses: tuple[str, ...]
    directory: str
    secret: bytes = field(repr=False)
    expires: float | None = None
    others: tuple[DirectoryAddress, ...] = ()

    @property
    def directories(self) -> tuple[DirectoryAddress, ...]:
        """All of them, this token's first one first."""
        return DirectoryAddress(self.directory, self.addresses), *self.others

    def __str__(self) -> str:
        return _pack(
            TOKEN_PREFIX, _TokenBody(self.addresses, self.directory, self.secret, self.expires, tuple(self.others))
        )

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises: SecurityError: not a join token, or a damaged one."""
        damaged = "the join token is damaged: copy the whole line that the directory printed after 'join:'"
        body = _unpack(TOKEN_PREFIX, text, f"this is not a join token: one begins with {TOKEN_PREFIX!r}", damaged)
        others = tuple(DirectoryAddress(key, addresses) for key, addresses in body.others)
        return cls(body.addresses, body.directory, body.secret, body.expires, others)

    def expiry(self, date: float) -> str:
        """The text for a person whose token is too old to enrol with; empty while it is good.

        A peer that has enrolled before needs the rest of the token only, so an old one is no reason to keep it out.
        """
        if self.expires is None or date < self.expires:
            return ""
        ended = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.expires))
        return f"the join token expired on {ended}: ask for a new one"


@dataclass(frozen=True)
class AdminKey:
    """Admin key: what administers a directory; as a file beside its state, which only the owner can read, and never
    elsewhere.

    Attributes:
        secret: a CURVE secret key; who connects with it may issue and revoke tokens and expel peers.
    """

    addresses: tuple[str, ...]
    directory: str
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        return _pack(ADMIN_PREFIX, _TokenBody(self.addresses, self.directory, self.secret))

    @classmethod
    def load(cls, path: Path) -> AdminKey:
        """Raises: SecurityError: the file cannot be read, or holds no admin key."""
        no_key = f"{path} holds no admin key: it is the file admin.key in the state folder of a directory"
        try:
            body = _unpack(ADMIN_PREFIX, path.read_text(encoding="ascii"), no_key, no_key)
        except OSError as error:
            raise SecurityError(f"cannot read the admin key in {path}: {error.strerror or error}") from error
        except UnicodeDecodeError:
            raise SecurityError(no_key) from None
        return cls(body.addresses, body.directory, body.secret)


def _pack(prefix: str, body: _TokenBody) -> str:
    encoded = msgspec.msgpack.encode(body)
    return prefix + base64.urlsafe_b64encode(encoded + _checksum(encoded)).decode().rstrip("=")


def _unpack(prefix: str, text: str, other: str, damaged: str) -> _TokenBody:
    """Raises: SecurityError: with the text `other` where it does not begin with `prefix`, else with `damaged`."""
    text = text.strip()
    if not text.startswith(prefix):
        raise SecurityError(other)
    payload = text.removeprefix(prefix)
    try:
        raw = base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True)
        body, checksum = raw[:-4], raw[-4:]
        if _checksum(body) != checksum:
            raise SecurityError(damaged)
        return msgspec.msgpack.decode(body, type=_TokenBody)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise SecurityError(damaged) from error


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:4]


class ZapAuthenticator:
    """Zap authenticator: answers the ZAP requests of a context; a handshake succeeds if `admit(public key)` says so.

    It runs in a thread of its own, so that peers get in while the caller computes. (pyzmq's ThreadAuthenticator runs
    asyncio's default loop, which cannot poll ZeroMQ sockets on Windows.)
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], admit: Callable[[str], bool]) -> None:
        self._authenticator = Authenticator(context)
        self._authenticator.configure_curve_callback(ZAP_DOMAIN, _Credentials(admit))
        self._authenticator.start()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="authenticator", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        zap = self._authenticator.zap_socket
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            while not self._stop.is_set():
                if zap.poll(200):
                    runner.run(self._authenticator.handle_zap_message(zap.recv_multipart()))
        self._authenticator.stop()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class _Credentials:
    """The shape that pyzmq's Authenticator asks for."""

    def __init__(self, admit: Callable[[str], bool]) -> None:
        self._admit = admit

    def callback(self, domain: str, key: bytes) -> bool:
        return self._admit(key.decode())
