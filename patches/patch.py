"""Patch: one change to upstream, what it replaces and why, and how it is applied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from patches import hooks
from patches.hooks import PatchError

UPSTREAM = "petals 2.2.0.post1"
PROVIDED = "hivemind"  # the package that is never installed


@dataclass(frozen=True)
class Lines:
    """Lines of upstream that a patch relies on, and a digest of them, to find out when they change.

    Attributes:
        file: from the folder in which packages are installed.
    """

    file: str
    first: int
    last: int
    digest: str

    def __str__(self) -> str:
        return f"{self.file}:{self.first}" + (f"-{self.last}" if self.last > self.first else "")

    def now(self, packages: Path) -> str:
        """The digest of these lines in the upstream that is installed. Raises: OSError: there is no such file."""
        lines = (packages / self.file).read_text(encoding="utf-8").splitlines()[self.first - 1 : self.last]
        return hashlib.sha256("\n".join(line.rstrip() for line in lines).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Patch:
    """Patch of upstream.

    Attributes:
        changes: what is provided or replaced (`MODULE:NAME`, or a whole `MODULE`), and what takes its place.
        upstream: where upstream has or uses what is replaced.
        replaces: what upstream has there, in words; `why` it does not do.
        how: `replace`, or `wrap`: what takes the place is made of what was there; or `lend`: the name of a module,
            which is another one while that of the target is imported.
        platforms: on which it is applied, as `sys.platform` names them; empty: on all.
    """

    name: str
    changes: Mapping[str, str]
    upstream: tuple[Lines, ...]
    replaces: str
    why: str
    test: str
    how: Literal["replace", "wrap", "lend"] = "replace"
    platforms: tuple[str, ...] = field(default=())

    def applies_to(self, platform: str) -> bool:
        return not self.platforms or platform in self.platforms

    def apply(self, finder: hooks.Changes) -> None:
        """Raises: PatchError: what is to be changed was imported before."""
        for target, source in self.changes.items():
            module, _, path = target.partition(":")
            if module.partition(".")[0] == PROVIDED:
                hooks.provide(target, source)
            elif not path:
                finder.instead(module, source)
            elif self.how == "lend":
                finder.lend(module, path, source)
            else:
                finder.add(module, hooks.replacement(path, source, self.how == "wrap"))

    def check(self, packages: Path) -> None:
        """Compare the lines of upstream that are installed with those that the patch was written for.

        Raises:
            PatchError: they differ.
        """
        for lines in self.upstream:
            try:
                now = lines.now(packages)
            except OSError as error:
                raise PatchError(
                    f"patch {self.name!r}: {lines.file} is not there ({error}); install {UPSTREAM}"
                ) from None
            if now != lines.digest:
                raise PatchError(
                    f"patch {self.name!r}: {lines} is not what the patch was written for (digest {now}, not "
                    f"{lines.digest}); install {UPSTREAM}, or review the patch"
                )
