"""Errors: what goes wrong with a directory, said for people."""

from __future__ import annotations


class DirectoryError(Exception):
    """A directory that cannot run, cannot be reached, or says no. The text is one line for the user.

    Attributes:
        code: why a directory said no (see `routing.directory.registry`); empty for everything else.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code
