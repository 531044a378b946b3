"""Check of the keys under `SWARM_HOME`: only their owner may read them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from swarm.cli.doctor.checks.finding import Finding

# Who is not the owner, by the two letters or the SID of SDDL: all, users, guests, anonymous, signed-in users.
OTHERS = {"WD", "BU", "BG", "AN", "AU", "IU", "S-1-1-0", "S-1-5-11", "S-1-5-32-545", "S-1-5-32-546"}
READS = {"FA", "FR", "GA", "GR"}  # rights by name: all, read
READ_DATA = 0x1


def others_may_read(sddl: str) -> bool:
    """Whether an access list lets users of the machine read a file.

    Args:
        sddl: of a file, e.g. `D:AI(A;ID;FA;;;SY)(A;ID;0x1200a9;;;BU)`; see [MS-DTYP] 2.5.1.
    """
    for kind, rights, who in re.findall(r"\(([^;()]*);[^;()]*;([^;()]*);[^;()]*;[^;()]*;([^;()]*)\)", sddl):
        if kind == "A" and who in OTHERS and _reads(rights):
            return True
    return "D:" not in sddl or "D:NO_ACCESS_CONTROL" in sddl


def _reads(rights: str) -> bool:
    if rights.lower().startswith("0x"):
        return bool(int(rights, 16) & (READ_DATA | 0x80000000 | 0x10000000))
    return any(rights[at : at + 2] in READS for at in range(0, len(rights), 2))


def keys(readable: Mapping[str, bool | None], damaged: Mapping[str, str], windows: bool) -> list[Finding]:
    """Findings about the key files: damaged ones, and those that other users can read.

    Args:
        readable: by file: whether others may read it; None: not known.
        damaged: by file: why it cannot be used.
    """
    if not readable and not damaged:
        return [Finding("keys", "ok", "none yet: programs make theirs when they first start")]
    found = [Finding("keys", "broken", what, f"delete {path} to get a new identity") for path, what in damaged.items()]
    open_ones = [path for path, others in readable.items() if others]
    for path in open_ones:
        mend = f'icacls "{path}" /inheritance:r /grant:r "%USERNAME%:F"' if windows else f"chmod 600 '{path}'"
        found.append(Finding("keys", "warning", f"other users of this machine can read {path}", mend))
    unknown = sum(others is None for others in readable.values())
    closed = len(readable) - len(open_ones) - unknown
    if unknown:
        found.append(Finding("keys", "skipped", f"who may read {unknown} of the key files is not known here"))
    if closed:
        found.append(Finding("keys", "ok", f"{closed} key file{'s' * (closed > 1)}, for their owner only"))
    return found
