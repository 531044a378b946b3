"""`python -m tests.fuzz.program server ...`: the programs as they ship, with the toy backend among the others.

With `FUZZ_UNLIMITED` in the environment nobody asks too often, so that everything that is said is also read.
"""

from __future__ import annotations

import importlib
import os
import sys

from backends import registry
from routing.directory import directory
from swarm.server import rate_limits

registry._BUILT_IN["toy"] = "tests.fuzz.toy_backend"
if os.environ.get("FUZZ_UNLIMITED"):
    floods, messages = rate_limits.FloodGuard, rate_limits.MessageRates
    rate_limits.FloodGuard = lambda clock, *limit: floods(clock, 1e9, 1e9, 1e9)  # type: ignore[assignment,misc]
    rate_limits.MessageRates = lambda clock: messages(clock, 1e9, 1e9)  # type: ignore[assignment,misc]
    directory.RATE, directory.BURST, directory.FLOOD = 1e9, 1e9, (1e9, 1e9)

if __name__ == "__main__":
    program = "openai_api.cli" if sys.argv[1] == "gateway" else "swarm.cli.main"
    if sys.argv[1] == "gateway":
        del sys.argv[1]
    importlib.import_module(program).main()
