"""pip that runs here and resolves for 64-bit Windows: `python windows_pip.py install|download [arguments of pip]`.

pip's own `--platform` chooses the wheels, but looks at this machine for the markers (`; sys_platform == "win32"`).
"""

from __future__ import annotations

import sys

from pip._internal.cli.main import main
from pip._vendor.packaging import markers

WINDOWS = {
    "os_name": "nt",
    "sys_platform": "win32",
    "platform_system": "Windows",
    "platform_machine": "AMD64",
    "platform_release": "10",
    "platform_version": "10.0.19045",
}

here = markers.default_environment
markers.default_environment = lambda: {**here(), **WINDOWS}
only = ["--only-binary=:all:", "--platform=win_amd64", "--implementation=cp"]
sys.exit(main([sys.argv[1], "-qq", "--disable-pip-version-check", *only, *sys.argv[2:]]))
