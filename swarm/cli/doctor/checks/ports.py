"""Check of the ports that the programs listen on by default."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from routing.links import EXCLUDED
from swarm.cli.doctor.checks.finding import Finding

PortState = Literal["free", "in use", "forbidden"]


class PortRange(NamedTuple):
    """TCP ports `start` to `end`, both included, that Windows keeps for something."""

    start: int
    end: int


def parse_excluded(netsh: str) -> list[PortRange]:
    """From `netsh interface ipv4 show excludedportrange protocol=tcp`, in whichever language."""
    lines = re.findall(r"^\s*(\d{1,5})\s+(\d{1,5})\s*\*?\s*$", netsh, re.MULTILINE)
    return [PortRange(int(start), int(end)) for start, end in lines]


def port(
    program: str, number: int, option: str, state: PortState, owner: str, excluded: Sequence[PortRange]
) -> Finding:
    """Whether a program can listen on its usual port.

    Args:
        option: with which the program takes another port.
        owner: what listens there; empty: not known.
        excluded: what the system keeps, which says why; a user's own reservations are among it and do no harm.
    """
    subject = f"port {number}"
    other = f"choose another port with {option}"
    if state == "free":
        return Finding(subject, "ok", f"free for {program}")
    kept = next((each for each in excluded if each.start <= number <= each.end), None)
    if state == "forbidden" and kept is not None:
        what = (
            f"Windows keeps the ports {kept.start} to {kept.end}, for Hyper-V, WSL or Docker: {program} cannot have it"
        )
        mend = (
            f"{other}, or free it, as an administrator: net stop winnat && netsh interface ipv4 add excludedportrange "
            f"protocol=tcp startport={number} numberofports=1 && net start winnat"
        )
        return Finding(subject, "warning", what, mend)
    if state == "forbidden":
        mend = f"{other}; '{EXCLUDED}' lists what Windows keeps"
        return Finding(subject, "warning", f"the system does not let {program} have it", mend)
    if "swarm" in owner or "openai_api" in owner:
        return Finding(subject, "ok", f"{owner} listens there")
    return Finding(subject, "warning", f"in use{f' by {owner}' if owner else ''}, so not free for {program}", other)
