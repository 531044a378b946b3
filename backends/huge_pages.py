"""Large pages for the weights. Every token reads all of them once, and where memory lies in pages of 4 KiB a good part
of that time goes into finding the pages.

Linux gives pages of 2 MiB to programs that ask (transparent huge pages; most distributions set them to `madvise`).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import psutil

LEAST = 16 << 20  # bytes of an area; what is smaller is read seldom, or stays in a processor's cache
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_HUGEPAGE, _COLLAPSE = 14, 25  # advice of madvise(2); the second, since Linux 6.1, moves what is in memory already


class MemoryArea(Protocol):
    """A mapped area of this process, as `psutil.Process.memory_maps(grouped=False)` gives it, in bytes."""

    @property
    def addr(self) -> str: ...
    @property
    def rss(self) -> int: ...
    @property
    def anonymous(self) -> int: ...


def areas(mappings: Iterable[MemoryArea]) -> list[range]:
    """The addresses of large areas that are memory of this process, not of a file."""
    large = [each for each in mappings if each.anonymous >= LEAST and each.anonymous > each.rss // 2]
    return [range(*(int(end, 16) for end in each.addr.split("-"))) for each in large]


def enlarge() -> int:
    """Move what this process holds in memory to large pages, where the system has them and lets programs ask.

    Returns:
        The bytes that lie in large pages now, of those that were looked at.
    """
    if sys.platform != "linux" or not allowed():
        return 0
    size = int((_SETTINGS / "hpage_pmd_size").read_text())
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    moved = 0
    for area in areas(psutil.Process().memory_maps(grouped=False)):
        advise(area.start, len(area), _HUGEPAGE)
        # One by one, because a page that nothing was written to yet ends a longer move.
        first = -(-area.start // size) * size
        moved += sum(size for at in range(first, area.stop - size + 1, size) if advise(at, size, _COLLAPSE) == 0)
    return moved


def allowed() -> bool:
    """Whether this Linux has them and has not switched them off."""
    try:
        return "[never]" not in (_SETTINGS / "enabled").read_text()
    except OSError:  # a kernel without them
        return False
