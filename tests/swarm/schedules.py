"""Random failure schedules over the simulation: servers that crash, hang, leave, come back, connections that break.

    python -m tests.swarm.schedules 5000

runs as many schedules, each known by its seed, and says which of them lost a session or changed a token.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from swarm.client.actions import Finished
from swarm.client.planner import Planner
from swarm.errors import Unavailable
from swarm.sampling import Sampling, pick
from tests.swarm.simulation import Client, Simulation, error_of, key
from tests.swarm.toy import VOCAB, Whole, logits

SPAN_LISTS = ([(0, 6)], [(0, 3), (3, 6)], [(0, 2), (2, 4), (4, 6)], [(0, 1), (1, 4), (4, 6)], [(0, 4), (2, 6), (3, 6)])
SAMPLED = Sampling(temperature=1.2, top_p=0.95, seed=5, repetition_penalty=1.1)


class Schedule:
    """One swarm with two servers of each span, some clients, and everything that goes wrong with them, or that they
    break off."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.simulation = Simulation(seed, slowness=self.random.choice([0.0, 0.2, 0.5]))
        spans = self.random.choice(SPAN_LISTS)
        self.homes = {f"{start}-{end}-{replica}": (start, end) for start, end in spans for replica in (0, 1)}
        for name, span in self.homes.items():
            self.simulation.add(name, *span, outputs=self.random.choice([0, 200, 1 << 20]))
        self.later: list[tuple[float, str, str]] = []  # when, what, which server
        self.rate = self.random.choice([0.0, 0.003, 0.01, 0.03])
        self.impatience = self.random.choice([0.0, 0.0, 0.02])  # the chance of a turn that a client breaks off
        self.troubles = 0
        self.goals: dict[
            str, tuple[int, Sampling | None]
        ] = {}  # by client: tokens given, and how to pick; None: a step

        self.asked: dict[str, Callable[[], None]] = {}  # by client: what it wants, to be asked again

    def run(self) -> None:
        """Raises: AssertionError: a session was lost, or got other tokens than the whole model gives."""
        # One gateway, whose sessions share what it knows of failures, or clients of their own.
        shared = Planner() if self.random.random() < 0.5 else None
        count = self.random.randrange(1, 4)
        clients = [self.simulation.client(f"client{i}", planner=shared) for i in range(count)]
        for client in clients:
            client.session.patience = 120  # longer than any outage of both servers of a span
        sequences = {client.key: self.some_ids(8) for client in clients}
        for _ in range(3):
            for client in clients:
                self.begin(client, sequences[client.key])
            for _ in range(60_000):
                if all(client.done and not self.was_turned_away(client) for client in clients):
                    break
                self.trouble()
                self.break_off(clients)
                self.ask_again(clients)
                self.simulation.turn()
            for client in clients:
                self.check(client, sequences[client.key])
        for client in clients:
            client.do(client.session.close())
        for name in self.homes:
            self.bring_back(name)
        for _ in range(200):
            self.simulation.turn()
        for node in self.simulation.network.nodes.values():
            assert not node.stage.cache and not node.server.status().sessions, "a closed session left something behind"

    def some_ids(self, most: int) -> list[int]:
        return [self.random.randrange(VOCAB) for _ in range(self.random.randrange(1, most))]

    def begin(self, client: Client, sequence: list[int]) -> None:
        client.outputs.clear()
        client.tokens.clear()
        if self.random.random() < 0.3:
            self.goals[client.key] = (len(sequence), None)
            ids = self.some_ids(4)
            if client.session.ids == sequence:
                self.asked[client.key] = partial(client.step, ids, len(sequence))
            else:
                self.asked[client.key] = partial(client.step, [*sequence, *ids], 0)
            sequence += ids
        else:
            sampling = self.random.choice([Sampling(), SAMPLED])
            sequence += self.some_ids(4)
            self.goals[client.key] = (len(sequence), sampling)
            self.asked[client.key] = partial(client.generate, list(sequence), self.random.randrange(1, 40), sampling)
        self.asked[client.key]()

    def check(self, client: Client, sequence: list[int]) -> None:
        assert client.done, f"{client.session.phase} after {self.simulation.network.now:.0f} s"
        assert error_of(client) is None, error_of(client)
        length, sampling = self.goals[client.key]
        if sampling is None and not client.outputs:  # it was broken off
            return
        if sampling is None:
            wanted = logits(sequence)[-len(client.outputs[-1]) :]
            np.testing.assert_allclose(client.outputs[-1], wanted, rtol=1e-4, atol=1e-4)
            return
        whole, fresh = Whole(), list(sequence)
        for token in client.ids:
            expected = pick(whole.feed(fresh), sampling, len(sequence), sequence, length).token
            assert token == expected, f"token {token} at {len(sequence)}, not {expected}"
            sequence.append(token)
            fresh = [token]

    def break_off(self, clients: list[Client]) -> None:
        """A client cancels what is under way, and may go on with something else in the next round."""
        for client in clients:
            if not client.done and self.random.random() < self.impatience:
                client.do(client.session.cancel(self.simulation.network.now))
                client.done = Finished()

    def was_turned_away(self, client: Client) -> bool:
        """Whether a session that no server has opened yet found none: it does not wait, but its user can ask again."""
        return client.done is not None and isinstance(client.done.error, Unavailable) and not client.session.was_open

    def ask_again(self, clients: list[Client]) -> None:
        for client in filter(self.was_turned_away, clients):
            self.asked[client.key]()

    def trouble(self) -> None:
        now = self.simulation.network.now
        for due in [entry for entry in self.later if entry[0] <= now]:
            self.later.remove(due)
            _, what, name = due
            if what == "return":
                self.bring_back(name)
            elif key(name) in self.simulation.network.nodes:
                self.simulation.hang(name, hung=False)
        if self.random.random() >= self.rate or self.troubles >= 12:
            return
        self.troubles += 1
        name = self.random.choice(list(self.homes))
        node = self.simulation.network.nodes.get(key(name))
        if node is None or node.hung or node.leaving:
            return
        match self.random.choice(["crash", "crash", "hang", "leave", "cut"]):
            case "crash":
                self.simulation.kill(name)
                self.later.append((now + self.random.uniform(0.1, 15), "return", name))
            case "hang":
                self.simulation.hang(name)
                self.later.append((now + self.random.uniform(0.1, 20), "go on", name))
            case "leave":
                self.simulation.leave(name)
                self.later.append((now + self.random.uniform(5, 15), "return", name))
            case "cut":
                other = self.random.choice(list(self.homes))
                if key(other) in self.simulation.network.nodes:
                    self.simulation.cut(name, other)

    def bring_back(self, name: str) -> None:
        node = self.simulation.network.nodes.get(key(name))
        if node is not None and node.leaving:
            self.simulation.kill(name)
            node = None
        if node is None:
            self.simulation.add(name, *self.homes[name])
        else:
            node.hung = False


def outcome(seed: int) -> str:
    """What went wrong; empty: nothing."""
    try:
        Schedule(seed).run()
    except Exception as error:  # noqa: BLE001  # whatever it is, it belongs to this seed
        return f"seed {seed}: {type(error).__name__}: {error}"[:300]
    return ""


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    started = time.monotonic()
    with ProcessPoolExecutor() as pool:
        failed = [text for text in pool.map(outcome, range(count), chunksize=20) if text]
    print(*failed, f"{count} schedules in {time.monotonic() - started:.1f} s, {len(failed)} failed", sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
