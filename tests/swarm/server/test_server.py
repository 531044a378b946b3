"""What the ring promises, on a simulated network: the `Server` and `Session` that ship, a toy model, no sockets."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import wire
from swarm.errors import BadRequest, Overloaded, Unavailable
from swarm.sampling import Sampling, pick
from tests.swarm.simulation import Client, Simulation, error_of, key
from tests.swarm.toy import BLOCKS, VOCAB, greedy, logits

PROMPT = [5, 17, 3, 42, 8]

cuts = st.sets(st.integers(1, BLOCKS - 1)).map(lambda inner: [0, *sorted(inner), BLOCKS])


def swarm_of(bounds: list[int], replicas: int = 1, **options: int) -> Simulation:
    simulation = Simulation()
    for replica in range(replicas):
        for start, end in itertools.pairwise(bounds):
            simulation.add(f"{start}-{end}-{replica}", start, end, **options)
    return simulation


@given(bounds=cuts, seed=st.integers(0, 1000), slowness=st.sampled_from([0.0, 0.3, 0.7]), batched=st.booleans())
@settings(max_examples=60, deadline=None)
def test_concurrent_sessions_each_get_the_tokens_of_the_whole_model(
    bounds: list[int], seed: int, slowness: float, batched: bool
) -> None:
    simulation = swarm_of(bounds, batched=batched)
    simulation.network.slowness = slowness
    generator = random.Random(seed)
    wanted: dict[str, list[int]] = {}
    for number in range(5):
        client = simulation.client(f"client{number}", 700)
        prompt = [generator.randrange(VOCAB) for _ in range(generator.choice([1, 7, 600]))]
        new = generator.randrange(1, 20)
        client.generate(prompt, new)
        wanted[client.key] = greedy(prompt, new)
    simulation.run()
    assert {client.key: client.ids for client in simulation.clients} == wanted


@pytest.mark.parametrize("hops", [1, 2, 3, 6])
def test_a_token_costs_as_many_messages_between_servers_as_there_are_hops(hops: int) -> None:
    simulation = swarm_of([BLOCKS * i // hops for i in range(hops + 1)])
    client = simulation.client()
    client.generate(PROMPT, 40)
    simulation.run()
    pushed = sum(node.server.pushed_messages for node in simulation.network.nodes.values())
    # The last token closes no ring; a single hop needs no message at all.
    assert pushed == (0 if hops == 1 else hops * 40 - 1)
    from_client = [m for sender, _, m in simulation.network.sent if sender == client.key]
    assert sum(isinstance(m, wire.Forward) for m in from_client) == 1  # the prompt: the client only watches


@given(
    seed=st.integers(0, 10_000),
    kills=st.lists(st.tuples(st.integers(1, 120), st.integers(0, 2), st.integers(0, 1)), max_size=5),
    slowness=st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=80, deadline=None)
def test_losing_servers_changes_no_token(seed: int, kills: list[tuple[int, int, int]], slowness: float) -> None:
    simulation = swarm_of([0, 2, 4, 6], replicas=2)
    simulation.network.slowness = slowness
    simulation.network.random.seed(seed)
    client = simulation.client()
    client.generate(PROMPT, 60)
    schedule = {turn: (span, replica) for turn, span, replica in kills}
    reborn: dict[int, tuple[int, int]] = {}
    for turn in range(20_000):
        if turn in schedule:
            span, replica = schedule[turn]
            name = f"{2 * span}-{2 * span + 2}-{replica}"
            if key(name) in simulation.network.nodes:
                simulation.kill(name)
                reborn[turn + 30] = (span, replica)
        if turn in reborn:
            span, replica = reborn[turn]
            simulation.add(f"{2 * span}-{2 * span + 2}-{replica}", 2 * span, 2 * span + 2)
        if client.done:
            break
        simulation.turn()
    assert error_of(client) is None
    assert client.ids == greedy(PROMPT, 60)
    assert [token.position for token in client.tokens] == list(range(len(PROMPT), len(PROMPT) + 60))


def replaced_tail(**options: int) -> tuple[Client, int]:
    """A client whose tail was lost after 10 of 30 tokens and replaced, and what the head has computed since."""
    simulation = swarm_of([0, 3, 6], **options)
    client = simulation.client(max_length=400)
    client.generate(PROMPT * 40, 30)
    while len(client.tokens) < 10:
        simulation.turn()
    head = simulation.network.nodes[key("0-3-0")]
    before = head.stage.computed
    simulation.kill("3-6-0")
    simulation.add("again", 3, 6)
    simulation.run()
    assert error_of(client) is None
    assert client.ids == greedy(PROMPT * 40, 30)
    return client, head.stage.computed - before


def test_survivors_keep_their_cache_and_feed_the_newcomer() -> None:
    client, computed = replaced_tail()
    assert any("3:6" in notice for notice in client.notices)
    assert computed <= 20 + 1, "the newcomer was not fed by what the head had kept"


def test_a_newcomer_is_fed_from_token_ids_where_the_outputs_are_gone() -> None:
    _, computed = replaced_tail(outputs=100)
    assert computed >= len(PROMPT) * 40


def test_a_slow_server_is_not_taken_for_a_dead_one() -> None:
    simulation = swarm_of([0, 3, 6], replicas=2)
    for node in simulation.network.nodes.values():
        node.period = 4.5  # s from one look at its sockets to the next
    client = simulation.client()
    client.generate(PROMPT, 12)
    simulation.run()
    assert error_of(client) is None and client.ids == greedy(PROMPT, 12)
    assert not client.notices and client.session.epoch == 1
    assert simulation.network.now > 12 * 4.5


@pytest.mark.parametrize("victim", [0, 1], ids=["head", "tail"])
def test_a_server_that_hangs_is_found_by_its_silence(victim: int) -> None:
    simulation = swarm_of([0, 3, 6], replicas=2)
    client = simulation.client()
    client.generate(PROMPT, 60)
    while len(client.tokens) < 20:
        simulation.turn()
    stopped, at = client.session.route[victim].peer.rstrip("_"), simulation.network.now
    simulation.hang(stopped)
    simulation.run()
    assert error_of(client) is None and client.ids == greedy(PROMPT, 60)
    assert simulation.network.now - at < 8
    simulation.hang(stopped, hung=False)
    client.do(client.session.close())
    for _ in range(50):
        simulation.turn()
    assert not any(node.stage.cache for node in simulation.network.nodes.values())


def test_activations_never_pile_up_before_a_slow_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("next_hops", "server"):
        monkeypatch.setattr(f"swarm.server.{module}.COUNTED", 0)
    monkeypatch.setattr("swarm.server.next_hops.WINDOW", 1000)
    monkeypatch.setattr("swarm.server.server.BATCH_TOKENS", 16)
    simulation = swarm_of([0, 3, 6])
    head, tail = (simulation.network.nodes[key(name)] for name in ("0-3-0", "3-6-0"))
    tail.period = 1.0
    clients = [simulation.client(f"client{i}", 600) for i in range(3)]
    for client in clients:
        client.generate(PROMPT * 80, 5)
    most = 0
    while not all(client.done for client in clients):
        simulation.turn()
        waiting = sum(
            len(frame) for frames in simulation.network.queues.get((head.key, tail.key), ()) for frame in frames
        )
        most = max(most, waiting)
    assert all(error_of(client) is None and client.ids == greedy(PROMPT * 80, 5) for client in clients)
    chunk = 16 * 8 * 4  # bytes of a batch of activations
    assert 0 < most < 1000 + 4 * chunk


def test_a_gap_that_nobody_fills_ends_with_the_missing_blocks() -> None:
    simulation = swarm_of([0, 3, 6])
    client = simulation.client()
    client.generate(PROMPT, 50)
    while len(client.tokens) < 5:
        simulation.turn()
    simulation.kill("3-6-0")
    simulation.run()
    error = error_of(client)
    assert isinstance(error, Unavailable) and error.missing == ((3, 6),)
    assert client.ids == greedy(PROMPT, 50)[: len(client.ids)]
    assert client.session.patience <= simulation.network.now < client.session.patience + 5
    simulation.turn()  # its `Close` arrives
    head = simulation.network.nodes[key("0-3-0")]
    assert not head.stage.cache, "a session that ended left its KV cache behind"


def test_a_step_session_can_go_back_and_take_another_turn() -> None:
    simulation = swarm_of([0, 2, 6])
    client = simulation.client()
    sequence: list[int] = []
    generator = random.Random(3)
    for _ in range(40):
        position = generator.randrange(len(sequence) + 1)
        ids = [generator.randrange(VOCAB) for _ in range(generator.randrange(1, 6))]
        sequence[position:] = ids
        client.step(ids, position)
        simulation.run()
        assert error_of(client) is None
        np.testing.assert_allclose(client.outputs[-1], logits(sequence)[position:], rtol=1e-5, atol=1e-5)
        if generator.random() < 0.2:
            client.generate([*sequence, 1], 3)
            simulation.run()
            assert client.ids == greedy([*sequence, 1], 3)
            sequence = [*sequence, 1, *client.ids]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_steps_survive_lost_servers(seed: int) -> None:
    simulation = swarm_of([0, 3, 6], replicas=2)
    simulation.network.random.seed(seed)
    generator = random.Random(seed)
    client = simulation.client()
    sequence: list[int] = []
    for number in range(12):
        ids = [generator.randrange(VOCAB) for _ in range(3)]
        position = generator.randrange(len(sequence) + 1)
        sequence[position:] = ids
        client.step(ids, position)
        for _ in range(generator.randrange(4)):
            simulation.turn()
        name = generator.choice(["0-3-0", "3-6-0"])
        if key(name) in simulation.network.nodes and generator.random() < 0.5:
            simulation.kill(name)
            simulation.add(name, *((0, 3) if name[0] == "0" else (3, 6)))
        simulation.run()
        assert error_of(client) is None, number
        np.testing.assert_allclose(client.outputs[-1], logits(sequence)[position:], rtol=1e-5, atol=1e-5)


def test_a_second_prompt_pays_only_for_its_new_tokens() -> None:
    simulation = swarm_of([0, 3, 6])
    client = simulation.client()
    client.generate(PROMPT * 20, 10)
    simulation.run()
    tail = simulation.network.nodes[key("3-6-0")]
    before = tail.stage.computed
    conversation = [*PROMPT * 20, *client.ids, 9, 9, 4]
    client.generate(conversation, 10)
    simulation.run()
    assert client.ids == greedy(conversation, 10)
    assert tail.stage.computed - before <= 3 + 1 + 10


def test_a_cancelled_ring_stops_and_its_session_goes_on_from_there() -> None:
    simulation = swarm_of([0, 3, 6])
    client = simulation.client(max_length=2000)
    client.generate(PROMPT, 1900)
    while len(client.tokens) < 7:
        simulation.turn()
    client.do(client.session.cancel(simulation.network.now))
    for _ in range(20):
        simulation.turn()
    tail = simulation.network.nodes[key("3-6-0")]
    computed = tail.stage.computed
    for _ in range(100):
        simulation.turn()
    assert tail.stage.computed == computed, "the ring still turns"
    conversation = [*PROMPT, *client.ids[:4], 11]
    client.generate(conversation, 8)
    simulation.run()
    assert client.ids == greedy(conversation, 8)


def test_sessions_beyond_the_budget_wait_and_then_are_refused_with_a_hint() -> None:
    simulation = swarm_of([0, 6], kv_tokens=1000)
    holder = simulation.client("holder", 900)
    holder.generate(PROMPT, 5)
    simulation.run()
    late = simulation.client("late", 600)  # more than its share of what two may have
    late.generate(PROMPT, 5)
    simulation.run()
    error = error_of(late)
    assert isinstance(error, Overloaded) and error.retry_after
    patient = simulation.client("patient", 200)
    patient.generate(PROMPT, 5)
    for _ in range(100):
        simulation.turn()
    holder.do(holder.session.close())
    simulation.run()
    assert error_of(patient) is None and patient.ids == greedy(PROMPT, 5)


def test_what_cannot_fit_is_refused_before_anything_is_sent() -> None:
    simulation = swarm_of([0, 6])
    client = simulation.client(max_length=10)
    for ids, new in (([], 3), (PROMPT, 6), (PROMPT, 0)):
        with pytest.raises(BadRequest):
            client.session.generate(ids, new, Sampling(), 0.0)
    with pytest.raises(BadRequest):
        client.session.step([1], 3, "logits", 0.0)
    assert not simulation.network.queues
    greedy_too_large = simulation.client("large", 5000)
    greedy_too_large.generate(PROMPT, 3)
    client.generate(PROMPT, 5)
    simulation.run()
    assert isinstance(error_of(greedy_too_large), BadRequest)
    bad_token = simulation.client("bad")
    bad_token.generate([VOCAB], 3)
    simulation.run()
    assert isinstance(error_of(bad_token), BadRequest)


def test_work_from_anybody_but_the_hop_before_changes_nothing() -> None:
    simulation = swarm_of([0, 3, 6])
    client = simulation.client()
    client.generate(PROMPT, 40)
    intruder = key("intruder")
    for turn in range(300):
        simulation.turn()
        session = client.session
        for node in list(simulation.network.nodes):
            position = len(session.ids)
            ids = np.array([1], np.int32)
            hidden = np.ones((1, 8), np.float32)
            forward = wire.Forward(session.id, session.epoch, position, 1, starts=(position,) * 2 if turn % 2 else ())
            simulation.network.send(intruder, node, forward, ids if node == key("0-3-0") else hidden)
            simulation.network.send(intruder, node, wire.Close(session.id), None)
            stolen = wire.Open(session.id, session.epoch + 5, "toy", session.route or (_hop(node),), 0, 50, 0)
            simulation.network.send(intruder, node, stolen, None)
        if client.done:
            break
    assert error_of(client) is None
    assert client.ids == greedy(PROMPT, 40)


def _hop(node: str) -> wire.Hop:
    return wire.Hop(node, ("127.0.0.1:1",), 0, BLOCKS)


def test_any_tail_continues_a_sampled_sequence_with_the_same_tokens() -> None:
    sampling = Sampling(temperature=1.3, top_p=0.9, seed=12, frequency_penalty=0.4, repetition_penalty=1.2)
    wanted = list(PROMPT)
    for position in range(len(PROMPT), len(PROMPT) + 30):
        wanted.append(pick(logits(wanted)[-1], sampling, position, wanted, len(PROMPT)).token)
    for kill_at in (None, 7, 19):
        simulation = swarm_of([0, 3, 6], replicas=2)
        client = simulation.client()
        client.generate(PROMPT, 30, sampling)
        while not client.done:
            if kill_at is not None and len(client.tokens) >= kill_at:
                kill_at = None
                tail = client.session.route[-1].peer
                simulation.kill(tail.rstrip("_"))
            simulation.turn()
        assert client.ids == wanted[len(PROMPT) :]


def test_a_stop_token_ends_the_ring_and_is_reported() -> None:
    tokens = greedy(PROMPT, 30)
    stop = tokens[12]
    first = tokens.index(stop)
    simulation = swarm_of([0, 3, 6])
    client: Client = simulation.client()
    client.generate(PROMPT, 30, Sampling(stop_ids=(stop,), logprobs=3))
    simulation.run()
    assert client.ids == tokens[: first + 1]
    assert [token.finish for token in client.tokens] == [""] * first + ["stop"]
    for token in client.tokens:
        assert token.logprob == max(logprob for _, logprob in token.top) and len(token.top) == 3


@given(seed=st.integers(0, 100_000), slowness=st.sampled_from([0.0, 0.5, 0.8]))
@settings(max_examples=60, deadline=None)
def test_a_session_used_in_every_way_never_mixes_sequences(seed: int, slowness: float) -> None:
    """Prompts that diverge, cancelled rings whose messages are still under way, steps, servers that the session
    leaves and comes back to with another sequence in their cache."""
    simulation = swarm_of([0, 3, 6], replicas=2)
    simulation.network.slowness = slowness
    simulation.network.random.seed(seed)
    generator = random.Random(seed)
    client = simulation.client(max_length=400)
    client.loses_closes = generator.random() < 0.5
    sequence = list(PROMPT)
    for _ in range(8):
        sequence = sequence[: generator.randrange(1, len(sequence) + 1)]
        sequence += [generator.randrange(VOCAB) for _ in range(generator.randrange(1, 5))]
        new = generator.randrange(1, 15)
        if generator.random() < 0.5 and client.session.route:
            # The connection breaks but the server stays, with what it has cached.
            peer = generator.choice(client.session.route).peer
            client.do(client.session.lost(peer, "closed", simulation.network.now))
        client.generate(sequence, new)
        if generator.random() < 0.3:
            for _ in range(generator.randrange(30)):
                simulation.turn()
            client.do(client.session.cancel(simulation.network.now))
            assert client.ids == greedy(sequence, new)[: len(client.ids)]
        else:
            simulation.run()
            assert error_of(client) is None
            assert client.ids == greedy(sequence, new)
        sequence += client.ids


def test_a_hop_whose_share_of_its_span_changes_starts_anew() -> None:
    simulation = Simulation()
    simulation.add("wide", 0, 4)
    simulation.add("late", 2, 6)
    simulation.add("tail", 4, 6)
    client = simulation.client()
    generator = random.Random(5)
    sequence = list(PROMPT)
    seen = set()
    for _ in range(20):
        for hop in client.session.route:  # the next plan may cut elsewhere
            client.do(client.session.lost(hop.peer, "closed", simulation.network.now))
        client.generate(sequence, 4)
        simulation.run()
        assert error_of(client) is None and client.ids == greedy(sequence, 4)
        seen.add(tuple((hop.start, hop.end) for hop in client.session.route))
        sequence = [*sequence[: generator.randrange(1, 9)], *client.ids]
    assert len(seen) > 1
