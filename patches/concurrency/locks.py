"""`fcntl.flock` for Windows, as far as upstream uses it: a lock that ends with the file or the process.

Windows locks bytes of a file (`msvcrt.locking`), always for one holder. So readers wait for each other, too, which is
slower than upstream and as safe.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable

LOCK_SH = 1
LOCK_EX = 2
PAUSE = 0.05  # s between two tries
_BUSY = {errno.EACCES, errno.EDEADLOCK if sys.platform == "win32" else errno.EDEADLK}


def flock(
    descriptor: int,
    operation: int,
    *,
    take: Callable[[int], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait for the lock on an open file, and take it.

    Args:
        operation: `LOCK_SH` or `LOCK_EX`.
        take: tries once to lock the file; raises OSError where another process has it.

    Raises:
        OSError: the file cannot be locked at all.
        ValueError: another operation.
    """
    if operation not in (LOCK_SH, LOCK_EX):
        raise ValueError(f"flock operation {operation}: only LOCK_SH and LOCK_EX are provided")
    while True:
        try:
            (take or _take)(descriptor)
            return
        except OSError as error:
            if error.errno not in _BUSY:
                raise
        sleep(PAUSE)


def _take(descriptor: int) -> None:
    """Raises: OSError: EACCES where another handle holds it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        raise OSError(errno.ENOSYS, "this is how files are locked on Windows; elsewhere there is fcntl")
