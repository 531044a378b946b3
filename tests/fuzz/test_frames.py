"""Hostile members do not bring a program down, keep it from serving others, or make it grow."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from routing import wire
from routing.links import Context
from tests.fuzz.hostile import Hostile, Hung
from tests.fuzz.mutation import Mutator
from tests.fuzz.run import fuzz
from tests.fuzz.talk import ServerTalk, say
from tests.fuzz.targets import TARGETS, server

MESSAGES = 6000
MB = 1 << 20


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_messages_change_nothing_for_others(name: str, seed: int, tmp_path: Path, swarm_home: Path) -> None:
    with TARGETS[name](tmp_path, seed) as target:
        outcome = fuzz(target, MESSAGES, seed, batches=8)
        assert outcome.messages >= MESSAGES
        assert outcome.answers > 100  # it was not merely deaf
        assert outcome.growth < 8 * MB
        assert outcome.logged < MB
        assert "\x1b" not in target.program.log and "Traceback (most recent call last)" not in target.program.log


def test_a_flood_keeps_nobody_else_from_being_served(tmp_path: Path, swarm_home: Path) -> None:
    with server(tmp_path, 1, unlimited=False) as target:
        (identity, _), *_ = target.hostile
        flood, over = [say(wire.Ping(1)), say(wire.Close("0" * 32)), [b"noise"]], threading.Event()

        def talk() -> None:
            context: Context = zmq.Context()
            hostile = Hostile(context, identity, target.key, target.address)
            while not over.is_set():
                for message in flood:
                    with suppress(Hung):  # put out, as it should be
                        hostile.say(message, patience=0.1)
            context.destroy(linger=0)

        target.check()
        before = target.resident()
        talking = threading.Thread(target=talk)
        talking.start()
        try:
            for _ in range(100):
                target.check()
            assert target.resident() - before < 100 * MB
            assert "ended a connection of" in target.program.log
        finally:
            over.set()
            talking.join()
        target.check()


def test_the_same_seed_makes_the_same_frames() -> None:
    def spoken(seed: int) -> list[list[bytes]]:
        talk, mutator = ServerTalk("s" * 40, "m" * 40, seed), Mutator(seed)
        return [frames for _ in range(50) for frames in mutator.conversation(talk())]

    assert spoken(4) == spoken(4) != spoken(5)
