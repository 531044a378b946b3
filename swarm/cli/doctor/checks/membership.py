"""Check of the membership: the answers of the join token's directories to the keys of this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from swarm.cli.doctor.checks.finding import Finding

MembershipStatus = Literal["member", "newcomer", "expelled", "wrong token", "impostor", "unreachable"]
DRIFT = 60.0  # s that clocks may be apart


@dataclass(frozen=True, slots=True)
class DirectoryAnswer:
    """A directory's answer to one key, or the want of it.

    Attributes:
        where: its addresses.
        name: of the identity on this machine; empty: there is none yet, the token alone was tried.
        dates: seconds since the epoch that it tells of, which lay in the past when it wrote them.
    """

    where: str
    name: str
    status: MembershipStatus
    dates: tuple[float, ...] = ()


def directory(answers: Sequence[DirectoryAnswer], expired: str) -> list[Finding]:
    """What one directory says of the identities that were tried. `expired`: why the token is too old; may be empty."""
    where = answers[0].where
    statuses = {answer.status for answer in answers}
    if "unreachable" in statuses:
        mend = "start swarm-directory there, open its port in that machine's firewall, check this machine's network"
        return [Finding("directory", "broken", f"no directory answers at {where}", mend)]
    if "impostor" in statuses:
        mend = "get a new join token: the line after 'join:' where swarm-directory runs"
        return [Finding("directory", "broken", f"another directory or another program answers at {where}", mend)]
    found = []
    if members := _names(answers, "member"):
        found.append(Finding("directory", "ok", f"{where} answers; {members} {_is(members)} admitted"))
    if expelled := _names(answers, "expelled"):
        mend = (
            f"ask the owner of the swarm for a new join token, then delete {expelled} under SWARM_HOME/identities: the "
            "next start makes a new key"
        )
        found.append(Finding("directory", "broken", f"{where} has expelled {expelled} from the swarm", mend))
    if "wrong token" in statuses:
        what = expired or f"{where} refuses the join token: it is wrong, has expired, was revoked or is used up"
        mend = "ask the owner of the swarm for a new one ('swarm token create')"
        # Members get in whatever has become of the token.
        found.append(Finding("directory", "warning" if members else "broken", what, mend))
    if "newcomer" in statuses:
        names = _names(answers, "newcomer") or "this machine"
        what = f"{where} answers; the join token is good and admits {names} at the next start"
        found.append(Finding("directory", "ok", what))
    return found


def _names(answers: Sequence[DirectoryAnswer], status: MembershipStatus) -> str:
    return ", ".join(answer.name for answer in answers if answer.status == status and answer.name)


def _is(names: str) -> str:
    return "are" if "," in names else "is"


def clock(answers: Sequence[DirectoryAnswer], expires: float | None, now: float) -> Finding:
    """Whether the clock is right, as far as directories tell: they say what has been, not what time it is."""
    mend = "set the clock: 'w32tm /resync' on Windows, 'timedatectl set-ntp true' on Linux"
    newest = max((date for answer in answers for date in answer.dates), default=None)
    if newest is not None and newest > now + DRIFT:
        return Finding("clock", "warning", f"at least {_span(newest - now)} behind that of the directory", mend)
    if expires is not None and now > expires and any(answer.status == "newcomer" for answer in answers):
        what = f"at least {_span(now - expires)} ahead: the join token, which the directory still takes, seems expired"
        return Finding("clock", "warning", what, mend)
    if newest is None:
        return Finding("clock", "skipped", "only a directory where this machine is a member tells of times to compare")
    here = time.strftime("%Y-%m-%d %H:%M", time.localtime(now))
    return Finding("clock", "ok", f"{here}, not behind that of the directory")


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
