"""Registry of patches: all of them, in the order of the page that lists them (`WINDOWS_PATCHES.md`)."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from patches import hooks
from patches.changes import CHANGES
from patches.hooks import PatchError
from patches.names import NAMES
from patches.patch import UPSTREAM, Patch


def patches() -> tuple[Patch, ...]:
    """All of them."""
    return (*NAMES, *CHANGES)


def installed() -> Path:
    """The folder in which upstream is installed. Raises: PatchError: it is not."""
    spec = importlib.util.find_spec("petals")
    if spec is None or spec.origin is None:
        raise PatchError(f"{UPSTREAM} is not installed here: make its environment with `python bootstrap.py petals`")
    return Path(spec.origin).parents[1]


def check(chosen: Iterable[Patch]) -> None:
    """Raises: PatchError: one does not fit the upstream that is installed."""
    packages = installed()
    for patch in chosen:
        patch.check(packages)


_applied: hooks.Changes | None = None


def apply(platform: str = sys.platform) -> None:
    """Check and apply all patches for this platform, before petals is imported. A second call does nothing.

    Raises:
        PatchError: petals is not installed, is another one, or was imported before.
    """
    global _applied
    if _applied is not None:
        return
    chosen = [patch for patch in patches() if patch.applies_to(platform)]
    check(chosen)
    finder = hooks.Changes()
    for patch in chosen:
        patch.apply(finder)
    sys.meta_path.insert(0, finder)
    _applied = finder
