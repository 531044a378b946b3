"""Traffic meter: the swarm's own program, which also notes what it sends to other servers.

    python -m benchmarks.kit.traffic server ...

The notes are written to the file named by `BENCHMARK_TRAFFIC` when the program ends. While it runs, a message costs it
one more append to a list; sizes are worked out at the end, by encoding messages of the same shape again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from routing import links, wire

TRAFFIC = "BENCHMARK_TRAFFIC"

_sent: list[tuple[wire.Forward, np.dtype[Any], tuple[int, ...]]] = []


class CountingDialer(links.Dialer):
    """A dialer that notes the shape of every `Forward` that it sends."""

    def send(self, peer: str, message: wire.Message, array: wire.Array | None = None) -> bool:
        """Send as a dialer does, and note what was taken."""
        taken = super().send(peer, message, array)
        if taken and isinstance(message, wire.Forward) and array is not None:
            _sent.append((message, array.dtype, array.shape))
        return taken


def message_sizes() -> list[tuple[int, bool, int]]:
    """(tokens, whether they are hidden states, bytes of all frames) of each message."""
    return [
        (shape[0], len(shape) > 1, sum(map(len, wire.encode(message, np.empty(shape, dtype)))))
        for message, dtype, shape in _sent
    ]


def main() -> None:
    """Run the command line with servers that count, and write what they sent."""
    from swarm.cli.main import main as run_cli
    from swarm.server import program

    vars(program)["Dialer"] = CountingDialer  # the server makes its dialer by this name
    try:
        run_cli()
    finally:
        Path(os.environ[TRAFFIC]).write_text(json.dumps(message_sizes()), encoding="utf-8")


if __name__ == "__main__":
    main()
