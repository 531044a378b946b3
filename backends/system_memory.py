"""Main memory: what the machine has left of it, for the backends that compute on its CPU."""

from __future__ import annotations

import psutil


def available() -> int:
    """The bytes of main memory that the system can give without swapping."""
    return int(psutil.virtual_memory().available)
