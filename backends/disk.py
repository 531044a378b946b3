"""What the system says of a disk."""

from __future__ import annotations

import errno

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_WINDOWS_FULL = {39, 112}  # ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL


def is_full(error: OSError) -> bool:
    """Whether something failed because a disk, or the user's share of it, is full."""
    return error.errno in _FULL or getattr(error, "winerror", None) in _WINDOWS_FULL
