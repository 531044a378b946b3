"""A server stays awake where the next message is likely to come soon, and only there."""

from __future__ import annotations

from swarm.server.polling import AWAKE, CROWDED, REST, AdaptivePoller

LOOK = 1e-5  # s that a look takes here
POLL = 0.2


class Machine:
    """A poller, a clock and other threads: messages come at given times."""

    def __init__(self, *messages: float) -> None:
        self.now = 0.0
        self.messages = list(messages)
        self.looks = self.asleep = 0  # how often it looked and gave way, and how often it slept
        self.others = 0.0  # s for which another thread runs whenever somebody gives way

    def poll(self, timeout: int) -> list[object]:
        if timeout:
            self.asleep += 1
            self.now = max(self.now, min([self.now + timeout / 1000, *self.messages]))
        there = [at for at in self.messages if at <= self.now]
        self.messages = self.messages[len(there) :]
        return list(there)

    def give_way(self) -> None:
        self.looks += 1
        self.now += max(LOOK, self.others)

    def poller(self, awake: float = AWAKE) -> AdaptivePoller:
        return AdaptivePoller(self, awake, lambda: self.now, self.give_way)  # type: ignore[arg-type]

    def serve(self, poller: AdaptivePoller, computing: float = 0.004) -> None:
        """Take the messages that there are, computing after each."""
        while self.messages:
            if poller.wait(POLL):
                self.now += computing


def every(seconds: float, count: int, start: float = 1.0) -> list[float]:
    return [start + seconds * i for i in range(count)]


def test_a_ring_that_turns_finds_the_server_awake() -> None:
    machine = Machine(*every(0.02, 50))
    machine.serve(machine.poller())
    assert machine.looks > 1000
    assert machine.asleep <= 6  # before the first message only


def test_a_server_whose_messages_are_rare_sleeps() -> None:
    machine = Machine(*every(0.15, 50))
    machine.serve(machine.poller())
    assert machine.looks == 0


def test_after_the_last_message_it_goes_to_sleep_and_stays_asleep() -> None:
    machine = Machine(*every(0.02, 10), 100.0)
    poller = machine.poller()
    while len(machine.messages) > 1:
        poller.wait(POLL)
    before = machine.looks
    machine.serve(poller)
    assert machine.looks - before <= AWAKE / LOOK + 1


def test_whoever_wants_the_processor_gets_it() -> None:
    machine = Machine(*every(0.02, 50 * 5))
    machine.others = 2 * CROWDED
    machine.serve(machine.poller())
    assert machine.looks <= 1 + 50 * 5 * 0.02 / REST


def test_it_can_be_told_to_sleep_always() -> None:
    machine = Machine(*every(0.005, 50))
    machine.serve(machine.poller(awake=0.0))
    assert machine.looks == 0


def test_nothing_is_waited_for_where_work_is_left() -> None:
    machine = Machine(5.0)
    assert not machine.poller().wait(0)
    assert (machine.now, machine.asleep, machine.looks) == (0.0, 0, 0)
