"""The part of `WINDOWS_PATCHES.md` that lists the patches of upstream, written from the registry."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from patches.patch import Patch
from patches.registry import patches

PAGE = Path(__file__).parents[1] / "WINDOWS_PATCHES.md"
BEGIN = "<!-- written by `python -m patches --write`: begin -->"
END = "<!-- end -->"

_PLATFORMS = {"win32": "Windows", "linux": "Linux", "darwin": "macOS"}
_HEAD = "| patch | replaces | upstream | why | by | where | test |\n|---|---|---|---|---|---|---|\n"


def table(listed: Iterable[Patch]) -> str:
    return _HEAD + "".join(map(_row, listed))


def _row(patch: Patch) -> str:
    upstream = ", ".join(f"`{lines}`" for lines in patch.upstream)
    sources = {source.partition(":")[0] for source in patch.changes.values()} - {"builtins"}
    by = ", ".join(f"`{source.replace('.', '/')}.py`" for source in sorted(sources))
    where = ", ".join(_PLATFORMS[platform] for platform in patch.platforms) or "everywhere"
    cells = (f"`{patch.name}`", patch.replaces, upstream, patch.why, by, where, f"`{patch.test}`")
    return "| " + " | ".join(cells) + " |\n"


def written(page: str) -> str:
    """The page with the table as it should be. Raises: ValueError: the page has no place for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN} and {END} in the page")
    return f"{before}{BEGIN}\n\n{table(patches())}\n{END}{after}"
