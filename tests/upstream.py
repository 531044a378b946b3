"""The environment in which upstream Petals is installed, for tests that run in another one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def petals_python() -> str:
    """Its Python; skips the test where there is none. `SWARM_PETALS_PYTHON` names one elsewhere."""
    scripts = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    found = os.environ.get("SWARM_PETALS_PYTHON") or str(ROOT.joinpath(".venv-petals", *scripts))
    if not Path(found).exists():
        pytest.skip("upstream Petals is not installed: python bootstrap.py petals")
    return found
