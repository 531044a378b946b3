"""The user's PATH in the registry."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def with_entry(path: str, folder: str) -> str:
    """`path` with `folder` at its end; unchanged where it is in it."""
    return path if _has(path, folder) else ";".join([*([path.rstrip(";")] if path.strip(";") else []), folder])


def without_entry(path: str, folder: str) -> str:
    """`path` without `folder`, the rest as it was."""
    return (
        ";".join(entry for entry in path.split(";") if _plain(entry) != _plain(folder)) if _has(path, folder) else path
    )


def _has(path: str, folder: str) -> bool:
    return _plain(folder) in map(_plain, path.split(";"))


def _plain(entry: str) -> str:
    return entry.strip().strip('"').rstrip("\\").casefold()


def add(folder: Path) -> None:
    """Programs that are started from now on see it."""
    _change(lambda path: with_entry(path, str(folder)))


def remove(folder: Path) -> None:
    """The opposite of `add`; leaves no empty value behind."""
    _change(lambda path: without_entry(path, str(folder)))


if sys.platform == "win32":
    import ctypes
    import winreg

    def _change(change: Callable[[str], str]) -> None:
        access = winreg.KEY_READ | winreg.KEY_WRITE
        with winreg.CreateKeyEx(winreg.HKEY_CURRENT_USER, "Environment", 0, access) as key:
            try:
                old, kind = winreg.QueryValueEx(key, "Path")
            except FileNotFoundError:
                old, kind = "", winreg.REG_EXPAND_SZ
            new = change(old)
            if new == old:
                return
            if new:
                winreg.SetValueEx(key, "Path", 0, kind, new)
            else:
                winreg.DeleteValue(key, "Path")
        # Tell the shell, which hands its environment to what it starts: HWND_BROADCAST, WM_SETTINGCHANGE,
        # SMTO_ABORTIFHUNG, 1 s.
        ctypes.windll.user32.SendMessageTimeoutW(0xFFFF, 0x1A, 0, "Environment", 2, 1000, None)

else:

    def _change(change: Callable[[str], str]) -> None:
        raise OSError("there is no registry on this system")
