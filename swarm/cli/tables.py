"""Tables for people, and dates in them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for place, title in enumerate(titles):
        # What comes first is what one copies: it is never cut off.
        table.add_column(title, no_wrap=True, min_width=0 if place else max((len(row[0]) for row in rows), default=0))
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def format_date(date: float | None) -> str:
    """A date in local time, to the minute; empty where there is none."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(date)) if date else ""


def format_age(date: float | None, now: float) -> str:
    """The time since `date`, in the largest unit that fits."""
    if date is None:
        return "not since this directory started"
    seconds = now - date
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "now" if seconds < 20 else f"{seconds:.0f} s ago"
