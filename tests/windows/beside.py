"""Runs a module with a folder of packages before those that are installed: `python beside.py FOLDER -m MODULE ...`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

folder, _, module, *arguments = sys.argv[1:]
sys.path[:1] = [str(Path.cwd()), folder]
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
