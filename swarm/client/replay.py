"""Replay: where each hop of a route starts after a change; pure.

Hops that stayed have their KV cache, newcomers have nothing. What a newcomer needs comes from the hop before it: out of
the outputs which that one has kept, or else computed again, for which it may itself need inputs from the hop before.
"""

from __future__ import annotations

from collections.abc import Sequence


def starts(cached: Sequence[int], held: Sequence[int]) -> tuple[int, ...]:
    """The position from which each hop computes, so that every hop gets what it lacks and little is computed twice.

    Args:
        cached: tokens in the KV cache of each hop.
        held: position from which each hop still has its outputs, up to `cached`.
    """
    found = [cached[-1]]
    for kept, first in zip(reversed(cached[:-1]), reversed(held[:-1]), strict=True):
        wanted = found[-1]  # by the next hop
        found.append(kept if wanted >= first else min(kept, wanted))
    return tuple(reversed(found))
