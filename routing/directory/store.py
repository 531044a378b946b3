"""Store: what a directory must not forget, in a folder that belongs to it alone.

    directory.key    its secret key
    token.key        the secret of the join token that it prints
    admin.key        what administers it: addresses, public key, a secret (see `routing.security.AdminKey`)
    directory.json   members, directories, the public halves of join tokens, expulsions
    directory.lock   held by the process that runs

A folder from which a part is missing or damaged is refused: going on would start an empty swarm under the old name, or
the old swarm under a new one.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from routing import wire
from routing.directory.roster import Roster
from routing.errors import DirectoryError
from routing.security import AdminKey, Identity, SecurityError


class StoredState(msgspec.Struct, frozen=True):
    """Stored state of a directory."""

    members: tuple[wire.Member, ...] = ()
    sites: tuple[wire.DirectoryInfo, ...] = ()
    enrolments: tuple[wire.TokenRecord, ...] = ()
    expelled: tuple[wire.Expulsion, ...] = ()
    version: int = 2


class _OldEnrolment(msgspec.Struct, frozen=True):
    key: wire.Key
    expires: float | None


class _OldState(msgspec.Struct, frozen=True):
    """Version 1."""

    members: tuple[wire.Member, ...]
    enrolments: tuple[_OldEnrolment, ...]


class _Versioned(msgspec.Struct, frozen=True):
    version: int


class DirectoryStore:
    """Store of a directory: the files in its folder.

    Attributes:
        identity: the directory's.
        admin: the key pair that administers it.
        token: the enrolment key pair of the join token, if there is one in `roster`.
        roster: as it was last saved.

    Raises:
        DirectoryError: the folder cannot be used, or another process uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "directory.json"
        self._token_path = folder / "token.key"
        self._admin_path = folder / "admin.key"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "directory.lock", timeout=0, thread_local=False)
            self._lock.acquire()
        except Timeout:
            raise DirectoryError(f"another directory is running on {folder}: stop it, or use another folder") from None
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            self._load()
        except BaseException:
            self._lock.release()
            raise

    def _load(self) -> None:
        key_path = self._folder / "directory.key"
        try:
            had_key, had_state = key_path.exists(), self._path.exists()
            if had_key and not had_state:
                raise self._damaged(f"{self._path} is missing")
            # The list is written before the key, so whatever a crash interrupts here is not taken for damage.
            if not had_state:
                self.save(Roster())
            self.roster = self._read()
            if self.roster.members and not had_key:
                raise self._damaged(f"{key_path} is missing")
            self.identity = self._read_key(key_path)
            self.admin = self._read_admin()
            self.token = Identity.load(self._token_path) if self._token_path.exists() else None
        except SecurityError:
            raise DirectoryError(f"{self._token_path} holds no key: delete it to get a new join token") from None
        except OSError as error:
            raise _unusable(self._folder, error) from error
        if self.token is not None and self.token.public not in self.roster.enrolments:
            self.token = None

    def _read_key(self, path: Path) -> Identity:
        try:
            return Identity.load(path)
        except SecurityError:
            raise self._damaged(f"{path} holds no key") from None

    def _read_admin(self) -> Identity:
        if not self._admin_path.exists():
            return Identity.create()
        try:
            return Identity.from_secret(AdminKey.load(self._admin_path).secret)
        except SecurityError:
            raise DirectoryError(f"{self._admin_path} holds no key: delete it to get a new one") from None

    def _read(self) -> Roster:
        try:
            content = self._path.read_bytes()
            version = msgspec.json.decode(content, type=_Versioned).version
            if version == 1:
                old = msgspec.json.decode(content, type=_OldState)
                enrolments = (wire.TokenRecord(entry.key, 0.0, entry.expires) for entry in old.enrolments)
                return Roster.of(old.members, enrolments=enrolments)
            if version == StoredState().version:
                state = msgspec.json.decode(content, type=StoredState)
                return Roster.of(state.members, state.sites, state.enrolments, state.expelled)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._damaged(f"{self._path} is damaged ({error})") from error
        raise DirectoryError(f"{self._path} was written by another version of this program: update this one")

    def _damaged(self, what: str) -> DirectoryError:
        return DirectoryError(
            f"{what}: restore it from a copy, or move {self._folder} away to start a new swarm, which all peers must "
            "join again"
        )

    def save(self, roster: Roster) -> None:
        """Replace what was saved, whole or not at all.

        Raises:
            OSError: the disk is full, or the file cannot be written.
        """
        tables = (roster.members, roster.sites, roster.enrolments, roster.expelled)
        state = StoredState(*(tuple(table.values()) for table in tables))  # type: ignore[arg-type]
        _replace(self._path, msgspec.json.format(msgspec.json.encode(state), indent=1))
        self.roster = roster

    def save_admin(self, addresses: tuple[str, ...]) -> None:
        """Write the file with which this directory is administered, now that it is known where it is.

        Raises:
            OSError: the file cannot be written.
        """
        _replace(self._admin_path, f"{AdminKey(addresses, self.identity.public, self.admin.secret)}\n".encode())

    def new_token(self) -> Identity:
        """A new enrolment key pair in the place of the old one. It is good once a saved state says so.

        Raises:
            OSError: the file cannot be written.
        """
        self.token = Identity.create()
        _replace(self._token_path, self.token.secret + b"\n")
        return self.token

    def close(self) -> None:
        self._lock.release()


def _replace(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, without a moment at which it is half written."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _unusable(folder: Path, error: OSError) -> DirectoryError:
    return DirectoryError(f"cannot keep the directory's state in {folder}: {error.strerror or error}")
