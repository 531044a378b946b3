"""What a directory must not forget, in a folder that belongs to it alone.

    directory.key    its secret key
    token.key        the secret of the join token
    directory.json   members, and the enrolment keys that are good
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
from routing.errors import DirectoryError
from routing.security import Identity, SecurityError


class Enrolment(msgspec.Struct, frozen=True):
    """The public half of an enrolment secret, and the date on which it expires."""

    key: wire.Key
    expires: float | None


class State(msgspec.Struct, frozen=True):
    members: tuple[wire.Member, ...] = ()
    enrolments: tuple[Enrolment, ...] = ()
    version: int = 1


class Ledger:
    """
    Attributes:
        identity: the directory's.
        token: the enrolment key pair of the join token, if there is one in `state`.
        state: as it was last saved.

    Raises:
        DirectoryError: the folder cannot be used, or another process uses it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "directory.json"
        self._token_path = folder / "token.key"
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
                self.save(State())
            self.state = self._read()
            if self.state.members and not had_key:
                raise self._damaged(f"{key_path} is missing")
            self.identity = self._read_key(key_path)
            self.token = Identity.load(self._token_path) if self._token_path.exists() else None
        except SecurityError:
            raise DirectoryError(f"{self._token_path} holds no key: delete it to get a new join token") from None
        except OSError as error:
            raise _unusable(self._folder, error) from error
        if self.token is not None and self.token.public not in {enrolment.key for enrolment in self.state.enrolments}:
            self.token = None

    def _read_key(self, path: Path) -> Identity:
        try:
            return Identity.load(path)
        except SecurityError:
            raise self._damaged(f"{path} holds no key") from None

    def _read(self) -> State:
        try:
            state = msgspec.json.decode(self._path.read_bytes(), type=State)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._damaged(f"{self._path} is damaged ({error})") from error
        if state.version != State().version:
            raise DirectoryError(f"{self._path} was written by another version of this program: update this one")
        return state

    def _damaged(self, what: str) -> DirectoryError:
        return DirectoryError(
            f"{what}: restore it from a copy, or move {self._folder} away to start a new swarm, which everybody must "
            "join again"
        )

    def save(self, state: State) -> None:
        """Replace the saved state, whole or not at all.

        Raises:
            OSError: the disk is full, or the file cannot be written.
        """
        _replace(self._path, msgspec.json.format(msgspec.json.encode(state), indent=1))
        self.state = state

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
