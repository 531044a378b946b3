"""Start and end of a program of the swarm: log, signals, the parent that may go away, errors as one line."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from backends import BackendError
from routing.errors import DirectoryError
from routing.links import LinkError
from routing.security import SecurityError
from swarm.errors import SwarmError
from swarm.system import pipes
from swarm.system.console import stop_on_close
from swarm.system.logs import PrintableFormatter, RateLimitedFilter

PARENT = "SWARM_PARENT"  # set to `stdin`: end when standard input does, because the parent holds its other end


class StopSignal(threading.Event):
    """Stop signal: set by Ctrl-C, SIGTERM, the closing of a console's window or the end of the parent.

    While `abrupt` the program is in the middle of starting, and is interrupted with KeyboardInterrupt instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.abrupt = True


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """Catch what ends a program. A second Ctrl-C always interrupts."""
    stop = StopSignal()

    def on_signal(number: int, frame: FrameType | None) -> None:
        again = stop.is_set()
        stop.set()
        if stop.abrupt or again:
            raise KeyboardInterrupt

    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    previous = {
        number: signal.signal(number, on_signal)
        for name in names
        if (number := getattr(signal, name, None)) is not None
    }
    if os.environ.get(PARENT) == "stdin":
        threading.Thread(target=_watch_parent, name="parent", daemon=True).start()
    try:
        with stop_on_close(lambda: signal.raise_signal(signal.SIGINT)):
            yield stop
    except KeyboardInterrupt:
        if not stop.is_set():
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch_parent() -> None:
    # Not through sys.stdin, whose lock this thread would hold while the interpreter ends: that aborts the process.
    pipes.wait_for_end(sys.stdin.fileno())
    signal.raise_signal(signal.SIGINT)


class _UserError(click.ClickException):
    def __init__(self, error: SwarmError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors that are meant for people into one line and an exit code."""
    try:
        yield
    except SwarmError as error:
        raise _UserError(error) from error
    except (BackendError, DirectoryError, LinkError, SecurityError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.Abort from None


def log_to_stderr(verbose: bool) -> None:
    """Send the log to standard error: a line per record, rate-limited and escaped."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(RateLimitedFilter())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    chatty = ("httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub", "filelock", "urllib3", "asyncio")
    for name in (*chatty, "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def print_contract_line(line: str) -> None:
    """Print one of the lines of the contract (`join: ...`, `ready: ...`) to standard output at once."""
    print(line, flush=True)
