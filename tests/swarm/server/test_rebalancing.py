"""A server that may move looks at the swarm now and then, announces that it would leave, looks again, and moves."""

from __future__ import annotations

import msgspec

from backends import Span
from routing import wire
from swarm.server.rebalancing import EVERY, SETTLE, Rebalancer, RebalanceStep
from tests.routing.material import KEYS, server

BLOCKS = 12


def crowd(own: wire.ServerInfo) -> list[wire.ServerInfo]:
    """Three servers hold the first half, and nobody the second."""
    return [own, *(server(key, 0, 6, blocks=BLOCKS, movable=True) for key in KEYS[1:3])]


def test_it_moves_to_a_gap_after_a_second_look() -> None:
    own = server(KEYS[0], 0, 6, blocks=BLOCKS, movable=True)
    rebalancer = Rebalancer(own.key, 6, now=0.0)
    mover = [
        other
        for other in crowd(own)
        if look(Rebalancer(other.key, 6, 0.0), crowd(own), 2 * EVERY) is RebalanceStep.DRAIN
    ]
    assert len(mover) == 1, "more than one of them would move, or none"
    own = mover[0]
    rebalancer = Rebalancer(own.key, 6, now=0.0)
    others = [other for other in crowd(server(KEYS[0], 0, 6, blocks=BLOCKS, movable=True)) if other.key != own.key]
    assert look(rebalancer, [own, *others], 0.1) is RebalanceStep.STAY
    assert look(rebalancer, [own, *others], 2 * EVERY) is RebalanceStep.DRAIN
    draining = msgspec.structs.replace(own, state="draining")
    assert look(rebalancer, [draining, *others], 2 * EVERY + SETTLE - 1) is RebalanceStep.STAY
    assert look(rebalancer, [draining, *others], 2 * EVERY + SETTLE) == Span(6, 12)


def test_it_stays_if_somebody_else_has_filled_the_gap_meanwhile() -> None:
    everybody = crowd(server(KEYS[0], 0, 6, blocks=BLOCKS, movable=True))
    own = next(o for o in everybody if look(Rebalancer(o.key, 6, 0.0), everybody, 2 * EVERY) is RebalanceStep.DRAIN)
    others = [other for other in everybody if other is not own]
    rebalancer = Rebalancer(own.key, 6, now=0.0)
    assert look(rebalancer, everybody, 2 * EVERY) is RebalanceStep.DRAIN
    newcomers = [server(key, 6, 12, blocks=BLOCKS) for key in KEYS[3:5]]
    draining = msgspec.structs.replace(own, state="draining")
    assert look(rebalancer, [draining, *others, *newcomers], 2 * EVERY + SETTLE) is RebalanceStep.RETURN
    assert look(rebalancer, [own, *others, *newcomers], 2 * EVERY + SETTLE + 1) is RebalanceStep.STAY


def look(rebalancer: Rebalancer, servers: list[wire.ServerInfo], now: float) -> RebalanceStep | Span:
    return rebalancer.look(servers, BLOCKS, now)
