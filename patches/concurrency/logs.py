"""Upstream's logging: Python's own, without colours or handlers of its own."""

from __future__ import annotations

import logging

loglevel = "INFO"


class TextStyle:
    """Text style: what upstream puts around words to colour them; nothing."""

    BOLD = RESET = ""


def get_logger(name: str | None = None) -> logging.Logger:
    return logging.getLogger(name)


def use_hivemind_log_handler(where: str) -> None:
    """Leave handlers as they are: the program that starts sets up its log."""
