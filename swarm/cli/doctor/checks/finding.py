"""Finding: the result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FindingLevel = Literal["ok", "skipped", "warning", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of the doctor.

    Attributes:
        subject: what was looked at, in a word or two.
        level: `broken`: a program cannot do its work; `warning`: it can, but worse than need be, or not for all users;
            `skipped`: it could not be looked at here.
        what: what was found.
        mend: what to do about it, with the exact command where there is one; empty where nothing is to be done.
    """

    subject: str
    level: FindingLevel
    what: str
    mend: str = ""
