"""Changes of the setup outside of its folder, kept for the uninstaller."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pc.layout import Layout


@dataclass(slots=True)
class Changes:
    """Record of what the setup has changed outside of its folder.

    Attributes:
        path: the user's PATH has an entry.
        task: there is a scheduled task.
        firewall: the program that the firewall rule names; empty: there is no rule of ours.
    """

    path: bool = False
    task: bool = False
    firewall: str = ""

    def save(self, layout: Layout) -> None:
        """Write them where the uninstaller finds them."""
        layout.changes.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, layout: Layout) -> Changes:
        """Those of the last setup; none where there was none."""
        if not layout.changes.is_file():
            return cls()
        return cls(**json.loads(layout.changes.read_text(encoding="utf-8")))
