"""Errors that are meant for people: the text is one clear line that says what is wrong and what to do."""

from __future__ import annotations


class SwarmError(Exception):
    """Base of all errors that end a request or a program with a line for people.

    Attributes:
        exit_code: what a program that ends with this error returns to the shell: 1 failed, 2 usage.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class BadRequest(SwarmError):
    """A bad request: the caller asked for something that cannot be; the same request will fail again."""


class Overloaded(SwarmError):
    """An overload: every server that could do it is full. `retry_after` (seconds) is a hint."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(SwarmError):
    """A gap: no route covers the model. `missing` holds the spans, as (start, end), that no server serves."""

    def __init__(self, message: str, missing: tuple[tuple[int, int], ...] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class SessionFailed(SwarmError):
    """A failed session: the swarm could not finish it."""


class Expelled(SwarmError):
    """An expulsion: this peer is not a member of the swarm any longer."""

    def __init__(self) -> None:
        super().__init__("this machine was expelled from the swarm: ask who runs it for a new join token")


class UnknownModel(SwarmError):
    """An unknown model: no server of the swarm offers one by that name."""
