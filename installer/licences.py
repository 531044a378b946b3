"""Licences of the bundled wheels, as they say themselves, and those that must not be bundled."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

# Licences that allow passing on unmodified copies, by words of their names in any spelling that occurs.
FREE = (
    *("apache", "mit", "bsd", "psf", "python software foundation", "isc", "mpl", "mozilla public", "zlib"),
    *("unlicense", "cc0", "0bsd"),
)
# Wheels whose libraries hold parts under other terms than the wheel names; THIRD_PARTY_NOTICES.md has those terms.
PARTS = {
    "torch": "with Intel OpenMP (libiomp5md.dll) and parts of Intel oneMKL, see the licences beside this list",
    "numpy": "with OpenBLAS (BSD-3-Clause), GCC's runtime (GPL-3.0 with the GCC exception), Microsoft's msvcp140.dll",
    "ml-dtypes": "with Microsoft's msvcp140.dll",
    "pyzmq": "with libzmq (MPL-2.0) and libsodium (ISC)",
}


@dataclass(frozen=True, slots=True)
class Wheel:
    """A bundled wheel, with what it says of its licence.

    Attributes:
        name: as the package index spells it, with hyphens.
        licence: SPDX expression, or what the wheel calls it.
        size: bytes.
    """

    name: str
    version: str
    licence: str
    size: int


class NotRedistributable(Exception):
    """A refused wheel: it may not be passed on, or does not say that it may."""


def read(path: Path) -> Wheel:
    """From the METADATA in a wheel.

    Raises:
        NotFree: its licence is not one of those that allow copies.
    """
    with zipfile.ZipFile(path) as archive:
        # One: others lie deeper, of packages that a package carries within itself.
        (metadata,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        fields = HeaderParser().parsestr(archive.read(metadata).decode("utf-8"))
    classifiers = [
        line.rpartition("::")[2].strip() for line in fields.get_all("Classifier", []) if "License ::" in line
    ]
    licence = fields.get("License-Expression") or (fields.get("License") or "").strip().split("\n")[0]
    licence = licence or " / ".join(classifiers)
    name = fields["Name"].lower().replace("_", "-").replace(".", "-")
    wheel = Wheel(name, fields["Version"], licence, path.stat().st_size)
    if not any(word in licence.lower() for word in FREE) or "proprietary" in licence.lower():
        raise NotRedistributable(f"{path.name} must not be bundled: its licence is {licence or 'not named'!r}")
    return wheel


def listing(wheels: list[Wheel]) -> str:
    """The table that goes into the setup program, as Markdown."""
    lines = ["| package | version | licence | bytes |", "|---|---|---|---:|"]
    for wheel in sorted(wheels, key=lambda each: each.name):
        parts = f"; {PARTS[wheel.name]}" if wheel.name in PARTS else ""
        lines.append(f"| {wheel.name} | {wheel.version} | {wheel.licence}{parts} | {wheel.size} |")
    return "\n".join(lines) + "\n"
