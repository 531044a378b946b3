"""`python -m tests.fuzz.program server ...`: the programs as they ship, with the toy backend among the others.

With `FUZZ_UNLIMITED` in the environment nobody asks too often, so that everything that is said is also read.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys

from backends import registry
from swarm import limits

registry._BUILT_IN["toy"] = "tests.fuzz.toy_backend"
if os.environ.get("FUZZ_UNLIMITED"):
    limits.Floods = functools.partial(limits.Floods, rate=1e9, burst=1e9)  # type: ignore[assignment,misc]
    limits.Messages = functools.partial(limits.Messages, rate=1e9, burst=1e9)  # type: ignore[assignment,misc]

if __name__ == "__main__":
    program = "openai_api.cli" if sys.argv[1] == "gateway" else "swarm.cli"
    if sys.argv[1] == "gateway":
        del sys.argv[1]
    importlib.import_module(program).main()
