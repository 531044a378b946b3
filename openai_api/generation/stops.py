"""Stop strings in a stream of text."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Stop scanner: lets text through up to the first stop string, and never a part of one.

    The first stop string is the one that is complete first; of two that are complete at the same character, the one
    that begins earlier. So the cut does not depend on how the text is divided into pieces. What may still become a stop
    string is held back.

    Attributes:
        found: the stop string that was found; nothing more is let through then.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that can be let through, now that `text` has come."""
        if self.found is not None:
            return ""
        seen = self._held + text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := seen.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            self._held = ""
            return seen[:at]
        keep = max((_overlap(seen, stop) for stop in self._stops), default=0)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
