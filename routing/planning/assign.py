"""Assign: which span a server should take, when it should take another, and how many blocks fit into a machine; pure
functions.

The choice of the span is Petals' (https://arxiv.org/abs/2209.01188, section 3.2; `block_selection.py` of its code): the
swarm is as fast as its weakest block, so a server goes where the throughput is least. So is the rule that servers move
only when a simulation of all their moves gains enough. That one moves at a time is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from routing import wire

Throughputs = npt.NDArray[np.float64]

ROUNDING = 1e-9  # of the mean throughput: differences below it are none
THRESHOLD = 0.2  # how much better another span must be for a server to give up the one that it has or had


def choose_span(coverage: Sequence[float], capacity: int, last: tuple[int, int] | None = None) -> tuple[int, int]:
    """The span `(start, end)` of `min(capacity, blocks)` blocks that a new server should take.

    It is the window whose throughputs, sorted, are lexicographically smallest; so no other window of that size holds
    more blocks that no server holds. Among equals it is the one with fewest ends next to a block that no server holds,
    so that coverage is extended and what is left open stays in one piece; then the lowest.

    A server that comes back takes its `last` span again, with its weights at hand, unless that no longer fits or leaves
    much of the memory empty, or the best window holds more blocks that no server holds or a much weaker one (more than
    `THRESHOLD` either way).

    Args:
        coverage: `[blocks]` throughput of each block over all servers, in tokens per second; 0: no server holds it.
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


def throughputs(servers: Iterable[wire.ServerInfo], blocks: int) -> Throughputs:
    """`[blocks]` tokens per second of each block over all servers. One that has not measured itself is average."""
    known = list(servers)
    rates = _rates(known)
    total = np.zeros(blocks)
    for server, rate in zip(known, rates, strict=True):
        total[server.start : server.end] += rate
    return total


def better_span(
    servers: Iterable[wire.ServerInfo], me: str, capacity: int, blocks: int, threshold: float = THRESHOLD
) -> tuple[int, int] | None:
    """The span `(start, end)` to which the server `me` should move now; None: it should stay.

    A server moves in two steps, because there is no consensus and every peer's view is some seconds old. Told a span,
    it announces `draining` and hands its sessions over, then, some ten seconds later, asks again with the view of that
    moment. Only if it is told a span again does it leave, load that one as `joining`, and become `ready`; otherwise it
    goes back to `ready`. Another server that wants to move has seen its announcement by then, as it has the other's.

    It moves if moves of this and other servers, simulated one after the other, raise the throughput of the weakest
    block by more than `threshold`, or serve a block that no server holds; and if it is its turn:

    * Of all servers that may move (`movable`, `ready`), the one whose move leaves the blocks that it touches best off
      is the first; equals by key. All compute the same from the same view.
    * No server begins to move while another server of the model is loading or leaving. Of two that began at once, the
      one with the greater key goes back.
    * What `ready` servers other than itself serve must leave each block that the move touches stronger than the weakest
      was. So a move opens no gap, does not lower the throughput of the weakest block, and is never undone.

    Args:
        servers: all that serve the model, `me` among them.
        capacity: how many blocks `me` can hold.
    """
    known = {server.key: server for server in servers if server.blocks == blocks and server.end <= blocks}
    own = known.get(me)
    others = [server for server in known.values() if server.key != me]
    if own is None or own.state == "joining" or any(server.state == "joining" for server in others):
        return None
    if any(server.state == "draining" and (own.state == "ready" or server.key < me) for server in others):
        return None
    taking_part = sorted((own, *(o for o in others if o.state == "ready")), key=lambda server: server.key)
    now = throughputs(taking_part, blocks)
    wanted = float(now.min()) * (1 + threshold)
    # Moves only spread the throughput over the blocks; the mean is what the weakest could have at best.
    if wanted > 0 and now.mean() <= wanted:
        return None
    held = [_Held(s.start, s.end, rate) for s, rate in zip(taking_part, _rates(taking_part), strict=True)]
    at = next(i for i, server in enumerate(taking_part) if server.key == me)
    movable = [i for i, server in enumerate(taking_part) if server.movable]
    first = _best_move(now, held, [at] if own.state == "draining" else movable)
    if at not in movable or capacity < 1 or first is None or first[0] != at:
        return None
    # The others were judged by the spans that they announce; only we know what else we could hold.
    mine, _ = _Relief(now).by(held[at], min(capacity, blocks))
    if mine is None:
        return None
    after, held[at] = _after(now, held[at], mine), mine
    return (mine.start, mine.end) if _reaches(after, held, movable, wanted) else None


def _reaches(throughput: Throughputs, held: list[_Held], movable: list[int], wanted: float) -> bool:
    """Whether moves, one after the other, raise the weakest block above what is wanted."""
    for _ in range(len(movable)):
        if throughput.min() > wanted:
            return True
        following = _best_move(throughput, held, movable)
        if following is None:
            return False
        i, held[i], throughput = following
    return False


class _Held(NamedTuple):
    """A span and what its server adds to each of its blocks, in tokens per second."""

    start: int
    end: int
    rate: float


def _rates(servers: Sequence[wire.ServerInfo]) -> list[float]:
    measured = [server.throughput for server in servers if server.throughput > 0]
    average = sum(measured) / len(measured) if measured else 1.0
    return [(server.throughput or average) / (server.end - server.start) for server in servers]


def _best_move(
    now: Throughputs, held: Sequence[_Held], candidates: Iterable[int]
) -> tuple[int, _Held, Throughputs] | None:
    """Who should move first, where to, and the throughputs after that. None: no move helps."""
    relief = _Relief(now)
    best: tuple[int, _Held] | None = None
    most = -np.inf
    for i in candidates:
        new, touched = relief.by(held[i], held[i].end - held[i].start)
        if new is not None and touched > most:
            best, most = (i, new), touched
    return best and (*best, _after(now, held[best[0]], best[1]))


def _after(now: Throughputs, old: _Held, new: _Held) -> Throughputs:
    after = now.copy()
    after[old.start : old.end] -= old.rate
    after[new.start : new.end] += new.rate
    return after


class _Relief:
    """How well the weakest block is relieved by one server or another."""

    def __init__(self, now: Throughputs) -> None:
        self._now = now
        self._weakest = int(now.argmin())
        self._nothing = ROUNDING * float(now.mean())
        self._least = float(now[self._weakest]) + self._nothing
        self._starts: dict[int, int] = {}

    def by(self, old: _Held, size: int) -> tuple[_Held | None, float]:
        """Where `size` blocks of this server do best, and how strong the weakest block is then of those that the move
        touches. None: no stronger than the weakest of all is now.
        """
        if old.start <= self._weakest < old.end:
            return None, 0.0
        start = self._start(size)
        new = _Held(start, start + size, old.rate * (old.end - old.start) / size)
        left = self._now[old.start : old.end].min() - old.rate
        if left <= self._nothing:
            return None, 0.0  # also where the new span holds the block again: while it is loaded no server would
        if new.end <= old.start or old.end <= new.start:
            touched = min(left, self._now[new.start : new.end].min() + new.rate)
        else:
            touched = _after(self._now, old, new)[min(old.start, new.start) : max(old.end, new.end)].min()
        return (new if touched > self._least else None), float(touched)

    def _start(self, size: int) -> int:
        """Of the window with the weakest block whose throughputs, sorted, are lexicographically smallest."""
        if size not in self._starts:
            low, high = max(self._weakest - size + 1, 0), min(self._weakest, len(self._now) - size)
            windows = np.lib.stride_tricks.sliding_window_view(self._now[low : high + size], size)
            self._starts[size] = low + int(np.lexsort(np.sort(windows).T[::-1])[0])
        return self._starts[size]


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
