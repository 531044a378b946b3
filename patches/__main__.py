"""`python -m patches PROGRAM [ARGUMENTS]`: upstream's programs, and scripts written for upstream, with the patches."""

from __future__ import annotations

import logging
import os
import runpy
import sys
from pathlib import Path

from patches import PatchError, apply
from patches.page import PAGE, written
from patches.registry import check, installed, patches

USAGE = """usage: python -m patches run_server MODEL [arguments of petals.cli.run_server]
       python -m patches SCRIPT.py [its arguments]
       python -m patches --check | --write | --digests

A join token is taken from SWARM_JOIN, or from --initial_peers.

--check    compare the installed upstream with the one that the patches were written for
--write    write the table of patches in WINDOWS_PATCHES.md
--digests  print the digest that each patch would have with the installed upstream, for who reviews the patches
"""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return run(*arguments)
    except PatchError as error:
        print(f"patches: {error}", file=sys.stderr)
        return 1


def run(program: str, *arguments: str) -> int:
    """Raises: PatchError: the patches do not fit what is installed."""
    if program == "--check":
        check(patches())
        print(f"{len(patches())} patches fit the upstream in {installed()}")
    elif program == "--write":
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    elif program == "--digests":
        for patch in patches():
            for lines in patch.upstream:
                print(patch.name, lines, lines.now(installed()))
    elif program == "run_server":
        _start("petals.cli.run_server", arguments)
    elif program.endswith(".py") and Path(program).is_file():
        _start(program, arguments)
    else:
        print(f"patches: there is no program or script {program!r}\n{USAGE}", end="", file=sys.stderr)
        return 2
    return 0


def _start(program: str, arguments: tuple[str, ...]) -> None:
    apply()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        sys.path.insert(0, str(Path(program).resolve().parent))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
