"""What the setup changed outside of its folder, kept for the uninstaller."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pc.layout import Layout


@dataclass(slots=True)
class Changes:
    """
    Attributes:
        path: the user's PATH has an entry.
        task: there is a scheduled task.
        firewall: the program that the firewall rule names; empty: there is no rule of ours.
    """

    path: bool = False
    task: bool = False
    firewall: str = ""

    def save(self, layout: Layout) -> None:
        layout.changes.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, layout: Layout) -> Changes:
        if not layout.changes.is_file():
            return cls()
        return cls(**json.loads(layout.changes.read_text(encoding="utf-8")))
