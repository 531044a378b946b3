"""Frames at a target, in batches; after each batch a good peer must be served, and memory is measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq

from routing.links import Context
from tests.fuzz.hostile import Hostile
from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import Target

OVERSIZED_EVERY = 5000  # messages; each costs 4 MiB and the connection


@dataclass
class Outcome:
    """
    Attributes:
        frames, messages: that were sent.
        answers: messages that came back.
        resident: bytes, before the first batch and after each.
        logged: bytes that the target wrote to its log meanwhile.
        checks: seconds that each good peer took.
    """

    target: str
    frames: int = 0
    messages: int = 0
    answers: int = 0
    seconds: float = 0.0
    logged: int = 0
    resident: list[int] = field(default_factory=list)
    checks: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """Bytes of resident memory, from the middle to the end, each the median of a quarter of the batches."""
        quarter = max(len(self.resident) // 4, 1)
        middle = len(self.resident) // 2
        return statistics.median(self.resident[-quarter:]) - statistics.median(self.resident[middle : middle + quarter])


def fuzz(
    target: Target, messages: int, seed: int, batches: int = 20, progress: Callable[[Outcome], None] = lambda _: None
) -> Outcome:
    """
    Raises:
        AssertionError: the target crashed, hung, or served a good peer wrongly.
    """
    context: Context = zmq.Context()
    mutator = Mutator(seed)
    outcome = Outcome(target.name, resident=[target.resident()])
    logged = target.logged()
    began = time.monotonic()
    oversized_at = OVERSIZED_EVERY
    try:
        target.check()
        for batch in range(1, batches + 1):
            peers = [(Hostile(context, each, target.key, target.address), talk) for each, talk in target.hostile]
            while outcome.messages < messages * batch / batches:
                for peer, talk in peers:
                    for message in mutator.conversation(talk()):
                        peer.say(message)
                        outcome.frames += max(len(message), 1)
                        outcome.messages += 1
            if outcome.messages > oversized_at:
                oversized_at += OVERSIZED_EVERY
                mutator.random.choice(peers)[0].say(mutator.oversized())
                outcome.frames += 1
                outcome.messages += 1
            for peer, _ in peers:
                peer.wait_handled()
                peer.close()  # without a word; the next batch comes on new connections
                outcome.answers += peer.answers
            started = time.monotonic()
            target.check()
            outcome.checks.append(time.monotonic() - started)
            outcome.resident.append(target.resident())
            outcome.seconds = time.monotonic() - began
            outcome.logged = target.logged() - logged
            progress(outcome)
    finally:
        context.destroy(linger=0)
    return outcome
