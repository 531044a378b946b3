"""Rate limits: how much one peer may say to a server."""

from __future__ import annotations

from collections import Counter

from routing import wire
from swarm.server import rate_limits
from swarm.server.rate_limits import BANNED_FOR, FloodGuard, MessageRates

NOW = 1000.0


def test_a_peer_that_says_too_much_is_made_to_wait_and_others_are_not() -> None:
    now = 0.0
    messages = MessageRates(lambda: now, rate=10, burst=20)
    answered = Counter(messages.wait("a", wire.Ping(1)) == 0 for _ in range(50))
    assert answered == {True: 20, False: 30}
    assert messages.wait("b", wire.Ping(1)) == 0
    assert 0 < messages.wait("a", wire.ReadFile(1, "m", "f", 0)) <= 0.4
    now = 1.0
    assert messages.wait("a", wire.ReadFile(1, "m", "f", 0)) == 0


def test_who_floods_is_put_out_for_a_while_and_nobody_else() -> None:
    now = [0.0]
    floods = FloodGuard(lambda: now[0], rate=10, burst=20)
    assert [floods.admit_message("a") for _ in range(25)] == [True] * 20 + [False] * 5
    assert not floods.admits("a") and floods.admits("b") and floods.admit_message("b")
    now[0] = BANNED_FOR - 1
    assert not floods.admit_message("a")
    now[0] = BANNED_FOR
    assert floods.admits("a") and floods.admit_message("a")
    for _ in range(int(rate_limits.USELESS_BURST)):
        floods.record_useless("b")
    assert floods.admits("b")
    floods.record_useless("b")
    assert not floods.admits("b")
