"""Upstream's logging: Python's own, without colours or handlers of its own."""

from __future__ import annotations

import logging

loglevel = "INFO"


class TextStyle:
    """What upstream puts around words to colour them: nothing."""

    BOLD = RESET = ""


def get_logger(name: str | None = None) -> logging.Logger:
    return logging.getLogger(name)


def use_hivemind_log_handler(where: str) -> None:
    """Leave handlers as they are: whoever starts the program sets up its log."""
