from __future__ import annotations

import sys
from pathlib import Path

# The setup program runs `pc` from its own folder, not as a part of the installer package.
sys.path.insert(0, str(Path(__file__).parents[2] / "installer"))
