"""Which span a new server should take, and how many blocks fit into a machine: pure functions.

The choice of the span is Petals' (https://arxiv.org/abs/2209.01188, section 3.2; `block_selection.py` of its code): the
swarm is as fast as its weakest block, so a server goes where the throughput is least.
"""

from __future__ import annotations

from collections.abc import Sequence

THRESHOLD = 0.2  # how much better another span must be for a server to give up the one that it has or had


def choose_span(coverage: Sequence[float], capacity: int, last: tuple[int, int] | None = None) -> tuple[int, int]:
    """The span `(start, end)` of `min(capacity, blocks)` blocks that a new server should take.

    It is the window whose throughputs, sorted, are lexicographically smallest; so no other window of that size holds
    more blocks that nobody serves. Among equals it is the one with fewest ends next to a block that nobody serves, so
    that coverage is extended and what is left open stays in one piece; then the lowest.

    A server that comes back takes its `last` span again, with its weights at hand, unless that no longer fits or leaves
    much of the memory empty, or the best window holds more blocks that nobody serves or a much weaker one (more than
    `THRESHOLD` either way).

    Args:
        coverage: `[blocks]` throughput of each block over all servers, in tokens per second; 0: nobody serves it.
        capacity: how many blocks the server can hold, at least 1.

    Raises:
        ValueError: there is no block, or capacity is below 1.
    """
    blocks = len(coverage)
    if blocks < 1 or capacity < 1:
        raise ValueError(f"no span of {capacity} of {blocks} blocks")
    size = min(capacity, blocks)

    def rank(start: int) -> tuple[list[float], int, int]:
        end = start + size
        open_ends = (start > 0 and coverage[start - 1] == 0) + (end < blocks and coverage[end] == 0)
        return sorted(coverage[start:end]), open_ends, start

    start = min(range(blocks - size + 1), key=rank)
    best = coverage[start : start + size]
    if last is not None and 0 <= last[0] < last[1] <= blocks and size / (1 + THRESHOLD) <= last[1] - last[0] <= size:
        old = coverage[last[0] : last[1]]
        if old.count(0) >= best.count(0) and min(old) <= min(best) * (1 + THRESHOLD):
            return last
    return start, start + size


def capacity(
    free_bytes: int,
    block_bytes: int,
    edge_bytes: int,
    kv_bytes_per_token: int,
    kv_tokens: int,
    reserve: int = 0,
) -> int:
    """How many blocks fit into a device; 0: not even one.

    Args:
        free_bytes: free on the device.
        block_bytes: weights of one block.
        edge_bytes: weights beside the blocks (embedding, norm, head), which a span may need at either end.
        kv_bytes_per_token: KV cache of one block for one token.
        kv_tokens: tokens that the KV cache shall hold.
        reserve: bytes to leave free, for activations and the rest of the machine.

    Raises:
        ValueError: a block takes no memory.
    """
    each = block_bytes + kv_bytes_per_token * kv_tokens
    if each < 1:
        raise ValueError("a block must take memory")
    return max(free_bytes - reserve - edge_bytes, 0) // each
