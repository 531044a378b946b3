"""Failure of the setup, for people (one message) and for scripts (an exit code)."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the setup program. 1 and 2 are those of NSIS: cancelled, and ended by an error of its own."""

    DONE = 0
    USAGE = 10
    PYTHON = 11
    NETWORK = 12
    DISK = 13
    IN_USE = 14
    PACKAGES = 15
    DOES_NOT_RUN = 16
    PARTLY = 17


class SetupFailure(Exception):
    """A failed setup; the text says what is wrong and what to do."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


_CAUSES = (
    (
        ExitCode.DISK,
        ("no space left", "not enough space", "os error 112", "os error 39", "os error 28"),
        "the disk is full. Free some space (2 GB, 8 GB with CUDA) and start the setup again.",
    ),
    (
        ExitCode.IN_USE,
        ("os error 32)", "os error 33)", "os error 5)", "access is denied"),
        "a file could not be written: something uses the folder, or it is not yours. Close the swarm's programs.",
    ),
    (
        ExitCode.NETWORK,
        ("dns error", "failed to fetch", "error sending request", "tcp connect", "timed out", "certificate", "tls"),
        "the package index cannot be reached. Check the network (a proxy is taken from HTTPS_PROXY) and start the "
        "setup again, or use the offline variant.",
    ),
)


def explain(step: str, output: str) -> SetupFailure:
    """The cause of a step of uv that failed, from all that it printed."""
    low = output.lower()
    for code, words, message in _CAUSES:
        if any(word in low for word in words):
            return SetupFailure(code, f"{step}: {message}")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if line.lower().startswith(("error", "cause", "x ", "\u00d7"))] or lines[-1:]
    return SetupFailure(ExitCode.PACKAGES, f"{step}: {' '.join(told) or 'no reason was given'}")
