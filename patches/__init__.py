"""Run-time patches that let upstream Petals run on Windows, and over `routing` instead of libp2p.

`apply()` comes before the first import of petals. `WINDOWS_PATCHES.md` lists every patch; `registry` says what one is:

* the names that upstream takes from hivemind, which is not installed, come from the modules of this package (`names`);
* a few attributes of upstream are replaced when it is imported (`changes`).

`python -m patches` runs upstream's own programs with them.
"""

from __future__ import annotations

from patches.hooks import PatchError
from patches.registry import apply

__all__ = ["PatchError", "apply"]
