"""Layout of an installation: the places below its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layout:
    """The places below the folder of one installation.

    Attributes:
        root: the folder that the user chose.
    """

    root: Path

    @classmethod
    def here(cls) -> Layout:
        """The layout of the installation that this file belongs to: it lies in `setup/pc`."""
        return cls(Path(__file__).resolve().parents[2])

    @property
    def setup(self) -> Path:
        """What the setup program has unpacked."""
        return self.root / "setup"

    @property
    def steps(self) -> Path:
        """The script that the setup program and the start menu run."""
        return self.setup / "setup_steps.py"

    @property
    def uv(self) -> Path:
        """The program that installs packages."""
        return self.setup / "uv.exe"

    @property
    def wheels(self) -> Path:
        """The wheels of the offline variant, only while it is being installed."""
        return self.setup / "wheels"

    @property
    def constraints(self) -> Path:
        """The tested versions."""
        return self.setup / "constraints.txt"

    @property
    def changes(self) -> Path:
        """What was changed outside of the folder, for the uninstaller; an update leaves it."""
        return self.root / "changes.json"

    @property
    def cache(self) -> Path:
        """uv's cache, only while it is being installed; on the same disk, so that files are linked and not copied."""
        return self.root / "cache"

    @property
    def venv(self) -> Path:
        """The virtual environment."""
        return self.root / "venv"

    @property
    def scripts(self) -> Path:
        """The folder of the virtual environment's programs."""
        return self.venv / "Scripts"

    @property
    def python(self) -> Path:
        """The virtual environment's interpreter."""
        return self.scripts / "python.exe"

    @property
    def bin(self) -> Path:
        """Our programs and nothing else, for PATH: `venv/Scripts` would put another `python` there."""
        return self.root / "bin"
