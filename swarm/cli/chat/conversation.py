"""Conversation of a chat in the terminal, and its file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from swarm.errors import BadRequest
from swarm.system import home

_NAME = re.compile(r"[\w][\w .-]{0,63}")


class ChatTurn(msgspec.Struct, frozen=True):
    """One message of a conversation, with the role of its author."""

    role: str
    content: str


class Conversation(msgspec.Struct):
    """A conversation: its messages in order, and the system message apart."""

    model: str = ""
    system: str = ""
    messages: list[ChatTurn] = []

    def __len__(self) -> int:
        return len(self.messages)

    def prompt(self, question: str) -> list[dict[str, Any]]:
        """The messages that the model is given for the next answer."""
        said = [ChatTurn("system", self.system)] if self.system else []
        return [msgspec.structs.asdict(message) for message in (*said, *self.messages, ChatTurn("user", question))]

    def add(self, question: str, answer: str) -> None:
        """Append a question and its answer."""
        self.messages += [ChatTurn("user", question), ChatTurn("assistant", answer)]


def save(conversation: Conversation, name: str) -> Path:
    """Write it below `SWARM_HOME`, readable by those who can read that.

    Raises:
        SwarmError: it cannot be written, or the name is none for a file.
    """
    path = _path(name)
    content = msgspec.json.format(msgspec.json.encode(conversation), indent=2)
    with home.disk_errors(path):
        home.folder("chats")
        part = path.with_suffix(".part")
        part.write_bytes(content + b"\n")
        part.replace(path)
    return path


def load(name: str) -> Conversation:
    """The conversation that was saved under a name.

    Raises:
        BadRequest: there is none by that name, or the file is damaged.
    """
    path = _path(name)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Conversation)
    except FileNotFoundError:
        raise BadRequest(f"no chat was saved as {name!r}; there are: {', '.join(saved()) or 'none'}") from None
    except (OSError, msgspec.DecodeError) as error:
        raise BadRequest(f"{path} cannot be read: {error}") from error


def saved() -> list[str]:
    """The names of the saved conversations."""
    return sorted(path.stem for path in (home.home() / "chats").glob("*.json"))


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise BadRequest(f"{name!r} is no name for a chat: take at most 64 letters, digits, blanks, dots and dashes")
    return home.home() / "chats" / f"{name}.json"
