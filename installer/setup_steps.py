"""Entry of the setup program, the start menu and the scheduled task: `python setup_steps.py --help`."""

from __future__ import annotations

import sys

from pc.program import main

sys.exit(main(sys.argv[1:]))
