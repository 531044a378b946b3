"""Servers that move to where the swarm is thinnest: one at a time, never back and forth, and without opening a gap."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from routing import wire
from routing.planning.assign import THRESHOLD, better_span, choose_span, throughputs
from tests.routing.material import server

BLOCKS = 24
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def one(name: str, start: int, end: int, throughput: float = 100.0, **fields: object) -> wire.ServerInfo:
    return server(
        name.ljust(40, "."),
        start,
        end,
        blocks=BLOCKS,
        throughput=throughput,
        **{"movable": True, "state": "ready", **fields},
    )


def key(name: str) -> str:
    return name.ljust(40, ".")


@st.composite
def swarms(draw: st.DrawFn) -> list[wire.ServerInfo]:
    servers = []
    for name in LETTERS[: draw(st.integers(1, 12))]:
        start = draw(st.integers(0, BLOCKS - 1))
        end = draw(st.integers(start + 1, BLOCKS))
        throughput = draw(st.sampled_from([0.0, 10.0, 100.0, 1000.0]))
        servers.append(one(name, start, end, throughput, movable=draw(st.sampled_from([True, True, False]))))
    return servers


def moved(servers: list[wire.ServerInfo], who: str, span: tuple[int, int]) -> list[wire.ServerInfo]:
    return [msgspec.structs.replace(each, start=span[0], end=span[1]) if each.key == who else each for each in servers]


def movers(servers: list[wire.ServerInfo], threshold: float = THRESHOLD) -> list[tuple[str, tuple[int, int]]]:
    asked = ((each.key, better_span(servers, each.key, each.end - each.start, BLOCKS, threshold)) for each in servers)
    return [(who, span) for who, span in asked if span is not None]


@given(swarms())
def test_at_most_one_moves_and_the_swarm_settles(servers: list[wire.ServerInfo]) -> None:
    states = [sorted(throughputs(servers, BLOCKS))]
    before = min(states[0])
    while moving := movers(servers):
        assert len(moving) == 1
        (who, span) = moving[0]
        then = throughputs(servers, BLOCKS)
        servers = moved(servers, who, span)
        now = throughputs(servers, BLOCKS)
        assert not np.any((then > 0) & (now <= 1e-6)), "a move opened a gap"
        assert now.min() >= then.min() * (1 - 1e-6)
        # Every move makes the sorted throughputs lexicographically greater, so no state comes back.
        grown = [round(float(each), 6) for each in sorted(now)]
        assert grown > [round(float(each), 6) for each in states[-1]]
        states.append(sorted(now))
        assert len(states) <= 4 * 12
    assert min(states[-1]) >= before * (1 - 1e-6)


@given(swarms(), st.integers(1, BLOCKS))
def test_who_is_asked_and_in_which_order_does_not_matter(servers: list[wire.ServerInfo], capacity: int) -> None:
    for each in servers:
        span = better_span(servers, each.key, capacity, BLOCKS)
        assert span == better_span(list(reversed(servers)), each.key, capacity, BLOCKS)
        if span is not None:
            assert each.movable and 0 <= span[0] < span[1] <= BLOCKS and span[1] - span[0] == capacity


@given(swarms(), st.data())
def test_nobody_begins_while_another_loads_or_leaves(servers: list[wire.ServerInfo], data: st.DataObject) -> None:
    who = data.draw(st.sampled_from(servers)).key
    state = data.draw(st.sampled_from(["joining", "draining"]))
    servers = [msgspec.structs.replace(s, state=state) if s.key == who else s for s in servers]
    assert all(mover == who for mover, _ in movers(servers))


def test_a_server_moves_to_the_gap_from_where_it_is_not_needed() -> None:
    swarm = [one("a", 0, 12), one("b", 0, 12), one("c", 12, 18)]
    assert movers(swarm) == [(key("a"), (12, 24))]
    assert better_span(swarm, key("a"), 6, BLOCKS) == (18, 24)
    fixed = [msgspec.structs.replace(each, movable=False) for each in swarm]
    assert movers(fixed) == []
    # One that could only leave a gap behind stays.
    assert movers([one("a", 0, 12), one("c", 12, 18)]) == []


def test_a_gain_below_the_threshold_is_not_worth_it() -> None:
    swarm = [*(one(name, 0, 12) for name in "abcdef"), *(one(name, 12, 24) for name in "ghij")]
    assert movers(swarm) == [(key("a"), (12, 24))]  # 6 and 4 servers become 5 and 5: a gain of a quarter
    assert movers(swarm, threshold=0.3) == []
    assert movers([*swarm, one("k", 12, 24)]) == []


def test_several_moves_that_only_together_are_worth_it_are_begun() -> None:
    """Two ends are equally weak: the first move gains nothing until the second follows."""
    swarm = [*(one(name, 8, 16) for name in "abcdefgh"), one("i", 0, 8), one("j", 16, 24)]
    ((first, span),) = movers(swarm)
    assert (first, span) == (key("a"), (0, 8))
    swarm = moved(swarm, first, span)
    assert movers(swarm) == [(key("b"), (16, 24))]


def test_of_two_that_began_at_once_the_one_with_the_greater_key_goes_back() -> None:
    swarm = [*(one(name, 0, 12) for name in "abc"), one("d", 0, 12, state="draining"), one("e", 12, 18)]
    assert movers(swarm) == [(key("d"), (12, 24))]  # asked again, alone
    both = [msgspec.structs.replace(each, state="draining") if each.key == key("a") else each for each in swarm]
    assert movers(both) == [(key("a"), (12, 24))]
    # What another that is draining serves does not count: only two serve 0:12 now, and both want to leave.
    last = [one("a", 0, 12, state="draining"), one("d", 0, 12, state="draining"), one("e", 12, 18)]
    assert movers(last) == []


# --- a swarm with churn ----------------------------------------------------------------------------------------------

STALE = 5  # s that a view may be old
LEASE = 15  # s after which a crash is seen
SETTLE = 10  # s between the two questions
LOAD = 12  # s to load a span
EVERY = 40  # s between two looks of a server at the swarm


@dataclass
class Machine:
    announced: wire.ServerInfo
    capacity: int
    phase: int
    lag: int
    until: int = 0  # when loading or draining ends
    leaving: bool = False
    alive: bool = True
    dead_at: int = 0
    moves: list[int] = field(default_factory=list)


class World:
    """Machines of one model in steps of a second. Each sees what was announced some seconds ago."""

    def __init__(self, seed: int, machines: int, blocks: int) -> None:
        self.chance = random.Random(seed)
        self.blocks = blocks
        self.now = 0
        self.machines: dict[str, Machine] = {}
        self.past: deque[list[wire.ServerInfo]] = deque(maxlen=STALE + 1)
        self.lost: list[tuple[int, wire.ServerInfo]] = []  # when, and what was served until then
        self.moves = 0
        for _ in range(machines):
            self.join(placed=False)

    def join(self, placed: bool = True) -> None:
        """At first machines are where chance has put them; newcomers are placed."""
        capacity = self.chance.randint(2, self.blocks // 3)
        speed = self.chance.choice([50.0, 100.0, 100.0, 200.0, 800.0])
        if placed:
            start, end = choose_span(list(throughputs(self.shown(), self.blocks)), capacity)
        else:
            start = int(self.chance.triangular(0, self.blocks - capacity, 0))
            end = start + capacity
        name = f"{self.chance.getrandbits(64):016x}".ljust(40, ".")
        announced = server(
            name, start, end, blocks=self.blocks, throughput=speed, state="joining" if placed else "ready", movable=True
        )
        phase, lag = self.chance.randrange(EVERY), self.chance.randint(0, STALE)
        self.machines[name] = Machine(announced, capacity, phase, lag, self.now + LOAD)

    def shown(self) -> list[wire.ServerInfo]:
        """What directories know: the dead are among it until their leases run out."""
        return [m.announced for m in self.machines.values() if m.alive or self.now < m.dead_at + LEASE]

    def serving(self) -> np.ndarray:
        """`[blocks]` throughput of those that really serve."""
        return throughputs((m.announced for m in self.machines.values() if self.serves(m)), self.blocks)

    def serves(self, machine: Machine) -> bool:
        return machine.alive and machine.announced.state != "joining"

    def churn(self, probability: float) -> None:
        if self.chance.random() < probability:
            self.join()
        alive = [m for m in self.machines.values() if m.alive and not m.leaving]
        if alive and self.chance.random() < probability:
            machine = self.chance.choice(alive)
            if self.chance.random() < 0.5:
                machine.alive, machine.dead_at = False, self.now
                if machine.announced.state != "joining":
                    self.lost.append((self.now, machine.announced))
            else:
                machine.leaving, machine.until = True, self.now + SETTLE
                machine.announced = msgspec.structs.replace(machine.announced, state="draining")

    def step(self) -> None:
        self.now += 1
        self.past.append(self.shown())
        for machine in list(self.machines.values()):
            if machine.alive:
                self.act(machine)
        for name, machine in list(self.machines.items()):
            if not machine.alive and self.now >= machine.dead_at + LEASE:
                del self.machines[name]

    def act(self, machine: Machine) -> None:
        said = machine.announced
        if machine.leaving:
            if self.now >= machine.until:
                machine.alive, machine.dead_at = False, self.now - LEASE
                self.lost.append((self.now, said))
            return
        if said.state == "joining":
            if self.now >= machine.until:
                machine.announced = msgspec.structs.replace(said, state="ready")
            return
        if said.state == "draining":
            if self.now >= machine.until:
                span = self.ask(machine)
                if span is None:
                    machine.announced = msgspec.structs.replace(said, state="ready")
                else:
                    self.move(machine, span)
            return
        if self.now % EVERY == machine.phase and self.ask(machine) is not None:
            machine.announced = msgspec.structs.replace(said, state="draining")
            machine.until = self.now + SETTLE

    def ask(self, machine: Machine) -> tuple[int, int] | None:
        view = self.past[max(len(self.past) - 1 - machine.lag, 0)]
        own = machine.announced
        # It knows itself as it is, and others as they were.
        return better_span([s for s in view if s.key != own.key] + [own], own.key, machine.capacity, self.blocks)

    def move(self, machine: Machine, span: tuple[int, int]) -> None:
        before = self.serving()
        old = machine.announced
        machine.announced = msgspec.structs.replace(old, start=span[0], end=span[1], state="joining")
        machine.until = self.now + LOAD
        machine.moves.append(self.now)
        self.moves += 1
        opened = set(np.flatnonzero((before > 0) & (self.serving() == 0)))
        # What was lost so short a time ago that the mover could not know is no fault of the move.
        for when, gone in self.lost:
            if self.now - when <= LEASE + STALE:
                opened -= set(range(gone.start, gone.end))
        assert not opened, f"a move at {self.now} left the blocks {opened} to nobody"


@given(st.integers(0, 1 << 32), st.integers(20, 60))
@example(3626764237, 20)  # the new span holds a part of the old one, which nobody else serves while it is loaded
@settings(max_examples=10)
def test_a_crooked_swarm_becomes_even_and_then_nobody_moves(seed: int, machines: int) -> None:
    world = World(seed, machines, 32)
    before = world.serving().min()
    while world.now < 6000 and (
        world.now < 600 or any(m.moves[-1:] > [world.now - 600] for m in world.machines.values())
    ):
        world.step()
    assert world.now < 6000, "it goes on moving"
    assert world.moves <= 3 * machines
    after = world.serving()
    assert after.min() >= before
    everybody = world.shown()
    assert all(each.state == "ready" for each in everybody) and movers_of(everybody, 32) == []


def movers_of(servers: list[wire.ServerInfo], blocks: int) -> list[str]:
    return [s.key for s in servers if better_span(servers, s.key, s.end - s.start, blocks) is not None]


@pytest.mark.parametrize("seed", [1, 2])
def test_hundreds_of_servers_with_churn_stay_covered_and_keep_their_peace(seed: int) -> None:
    """Every 20 s somebody comes and somebody leaves or crashes; a move that opens a gap fails inside."""
    world = World(seed, 300, 80)
    crooked = world.serving()
    while world.now < 1000:
        world.churn(0.05)
        world.step()
    even = world.serving()
    changes = 0.05 * 2 * world.now
    assert even.min() > 2 * crooked.min() and even.min() > 0.4 * even.mean()
    assert world.moves <= 300 + 2 * changes
    # Nobody goes back and forth: a server that has settled in stays for minutes.
    often = [len(machine.moves) for machine in world.machines.values()]
    assert sum(often) / len(often) < 1.5
