"""Where Wine is not Windows: a test of something in which they differ bears the reason, and runs on Windows alone."""

from __future__ import annotations

import sys

import pytest


def _is_wine() -> bool:
    if sys.platform != "win32":
        return False
    import ctypes

    return hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


IS_WINE = _is_wine()


def wine(reason: str) -> pytest.MarkDecorator:
    """Leaves a test out under Wine; `reason` is how Wine differs there."""
    return pytest.mark.skipif(IS_WINE, reason=f"not under Wine: {reason}")


windows_only = pytest.mark.skipif(sys.platform != "win32", reason="only Windows has it")
