"""Where Wine cannot be had, the Windows subset says so and fails nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.windows.programs import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="Wine is set up on Linux")
def test_without_debians_packages_the_subset_is_skipped_with_a_visible_line(tmp_path: Path) -> None:
    """This system's programs, but without the compiler for Windows, and with an apt-get that reaches nobody."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for tool in Path(folder).iterdir():
            if "mingw32" not in tool.name and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    (tools / "apt-get").unlink(missing_ok=True)
    (tools / "apt-get").write_text("#!/bin/sh\necho 'E: Could not resolve deb.debian.org' >&2\nexit 100\n")
    (tools / "apt-get").chmod(0o755)
    environment = {**os.environ, "PATH": str(tools), "PYTHON": sys.executable, "SWARM_WINE": str(tmp_path / "wine")}
    done = subprocess.run(
        [ROOT / "tests" / "windows" / "run.sh"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (notice,) = done.stdout.splitlines()
    assert notice.startswith("NOTICE: Windows subset skipped: "), notice
