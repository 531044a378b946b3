"""Servers that say whatever the protocol can carry harm nothing but the answer that they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import wire
from swarm.client.actions import Action, Emit, Finished, Notice, PlanRoute, StepOutput
from swarm.client.session import RemoteSession
from swarm.errors import Unavailable
from swarm.sampling import Sampling

LONG = 3600.0  # s after which everything must have ended, however it was strung along
PROMPT, END, WIDTH = [1, 2, 3], 8, 4
HOPS = tuple(wire.Hop(name * 40, ("127.0.0.1:1",), start, start + 2) for start, name in ((0, "a"), (2, "b"), (4, "c")))

counts = st.one_of(st.integers(0, 10), st.integers(0, (1 << 31) - 1))
numbers = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(max_size=8)
peers = st.sampled_from([*(hop.peer for hop in HOPS), "z" * 40])


def said(message: type[wire.Message], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(fields).map(lambda given: message(session="s" * 32, epoch=0, **given))


tokens = st.tuples(counts, numbers)
messages = st.one_of(
    said(wire.Opened, position=counts, held=counts),
    said(wire.Token, position=st.integers(2, 9), token=counts, finish=st.sampled_from(["", "", "stop", "length"])),
    said(wire.Token, position=counts, token=counts, logprob=numbers, top=st.lists(tokens, max_size=3).map(tuple)),
    said(wire.Result, position=counts, last=st.booleans()),
    said(wire.Refused, code=st.sampled_from(["too_many", "too_long", "no_room", "x"]), reason=texts),
    said(
        wire.Failed,
        code=st.sampled_from(["bad_input", "compute", "evicted", "gap", "leaving", "lost_hop", "memory"]),
        reason=texts,
        peer=st.sampled_from(["", "z" * 40, HOPS[0].peer]),
    ),
    said(wire.Alive, accepted=counts, computed=counts),
    said(wire.Leaving),
)
arrays = st.one_of(
    st.none(),
    st.lists(st.integers(0, 4), max_size=3).map(lambda shape: np.zeros(shape, np.float32)),
    st.integers(0, 3).map(lambda rows: np.zeros((rows, WIDTH), np.float32)),
)
events = st.one_of(
    st.just(("open",)),
    st.just(("open",)),
    st.tuples(st.just("says"), peers, messages, arrays, st.booleans()),
    st.tuples(st.just("waits"), st.floats(0.01, 20)),
    st.tuples(st.just("loses"), peers, st.sampled_from(["closed", "unreachable", "refused"])),
)


class Client:
    """Does what the driver does with the actions of a session."""

    def __init__(self, session: RemoteSession, has_route: Callable[[PlanRoute], bool]) -> None:
        self.session = session
        self.has_route = has_route
        self.items: list[Any] = []
        self.ends: list[Finished] = []
        self.plans = 0
        self.now = 0.0

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case PlanRoute() as plan:
                    self.plans += 1
                    if self.has_route(plan):
                        self.carry_out(self.session.routed(HOPS, self.now))
                    else:
                        error = Unavailable("no server has blocks 0:6", ((0, 6),))
                        self.carry_out(self.session.no_route(error, self.now))
                case Emit(item):
                    self.items.append(item)
                case Finished() as done:
                    self.ends.append(done)


@settings(max_examples=400)
@given(script=st.lists(events, max_size=40), step=st.booleans(), routes=st.lists(st.booleans(), max_size=30))
def test_whatever_hops_say_an_answer_ends_and_nothing_breaks(
    script: list[tuple[Any, ...]], step: bool, routes: list[bool]
) -> None:
    session = RemoteSession("s" * 32, "toy", 16)
    client = Client(session, lambda plan: routes.pop() if routes else False)
    if step:
        client.carry_out(session.step(PROMPT, 0, "logits", 0.0, 2))
    else:
        client.carry_out(session.generate(PROMPT, END - len(PROMPT), Sampling(stop_ids=(7,)), 0.0))
    for event in script:
        match event:
            case ("says", peer, message, array, current):
                if current:
                    message = msgspec.structs.replace(message, epoch=session.epoch)
                client.carry_out(session.received(peer, message, array, client.now))
            case ("open",):  # as they should
                for hop in HOPS:
                    opened = wire.Opened(session.id, session.epoch, 0)
                    client.carry_out(session.received(hop.peer, opened, None, client.now))
            case ("waits", seconds):
                client.now += seconds
                client.carry_out(session.tick(client.now))
            case ("loses", peer, reason):
                client.carry_out(session.lost(peer, reason, client.now))
    while not client.ends and client.now < LONG:
        client.now += 1.0
        client.carry_out(session.tick(client.now))
    assert len(client.ends) == 1
    assert client.plans < 400  # it looks once a second for another place than a server that leaves
    notices = [item.text for item in client.items if isinstance(item, Notice)]
    assert all(text.isprintable() for text in [*notices, str(client.ends[0].error)])
    made = [item for item in client.items if not isinstance(item, Notice)]
    if step:
        assert all(isinstance(item, StepOutput) and item.array.shape[0] == 2 and item.array.ndim == 2 for item in made)
        assert len(made) == (client.ends[0].error is None)
    else:
        assert [token.position for token in made] == list(range(len(PROMPT), len(PROMPT) + len(made)))
        assert len(made) <= END - len(PROMPT)
        assert client.ends[0].error is not None or made[-1].finish
