"""Large pages for weights: which memory is asked for, and what stays as it was."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from backends import huge_pages


def test_large_memory_of_its_own_is_chosen_and_files_and_stacks_are_not() -> None:
    mappings = [
        SimpleNamespace(addr="7f0000000000-7f0004000000", rss=64 << 20, anonymous=64 << 20),
        SimpleNamespace(addr="7f1000000000-7f1004000000", rss=64 << 20, anonymous=0),  # a mapped file
        SimpleNamespace(addr="7f2000000000-7f2000800000", rss=8 << 10, anonymous=8 << 10),  # a stack
    ]
    assert huge_pages.areas(mappings) == [range(0x7F0000000000, 0x7F0004000000)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has them")
def test_weights_move_to_large_pages_and_stay_the_same() -> None:
    if not huge_pages.allowed():
        pytest.skip("this machine has no large pages")
    weights = np.arange(16 << 20, dtype=np.float32)
    total = float(weights.sum())
    moved = huge_pages.enlarge()
    assert moved >= weights.nbytes / 2, "the system had none left"
    assert float(weights.sum()) == total
    assert in_large_pages() >= weights.nbytes / 2


def in_large_pages() -> int:
    """Bytes of this process, as the kernel says."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found is not None
    return int(found[1]) << 10
