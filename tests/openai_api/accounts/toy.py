"""A swarm of two servers that computes nothing: its tokens count upwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from routing import wire
from swarm import Notice, Routed, Sampling, ServedModel
from tests.openai_api.engine import server

MODEL, OTHER = "toy", "other"
HEAD, TAIL, SPARE = "a" * 40, "b" * 40, "c" * 40


def hop(key: str, start: int, end: int) -> wire.Hop:
    return wire.Hop(peer=key, addresses=(), start=start, end=end)


ROUTE = (hop(HEAD, 0, 10), hop(TAIL, 10, 30))
OTHER_ROUTE = (hop(HEAD, 0, 10), hop(SPARE, 10, 30))


class Toy:
    """
    Attributes:
        change_after: tokens after which the tail is lost and the spare takes its place.
        hold: answers wait before their first token until it is set.
        running: answers that wait or are being made.
    """

    def __init__(self) -> None:
        self.change_after = 0
        self.hold = threading.Event()
        self.hold.set()
        self.running = 0

    def models(self) -> list[ServedModel]:
        spans = ((HEAD, "head", 0, 10), (TAIL, "tail", 10, 30), (SPARE, "spare", 10, 30))
        return [
            ServedModel(
                name,
                30,
                8192,
                tuple(
                    msgspec.structs.replace(server(name, 30, start, end), key=key, name=called)
                    for key, called, start, end in spans
                ),
                (),
            )
            for name in (MODEL, OTHER)
        ]

    async def tokenizer(self, model: str) -> None:
        return None

    async def stream(
        self, model: str, input_ids: Sequence[int], max_new_tokens: int, sampling: Sampling | None = None
    ) -> AsyncIterator[wire.Token | Notice]:
        self.running += 1
        try:
            while not self.hold.is_set():
                await asyncio.sleep(0.01)
            yield Routed("computed by 2 servers", ROUTE)
            for number in range(max_new_tokens):
                if self.change_after and number == self.change_after:
                    yield Notice("the server of blocks 10:30 was lost")
                    yield Routed("computed by 2 servers", OTHER_ROUTE)
                finish: Any = "length" if number + 1 == max_new_tokens else ""
                yield wire.Token("s" * 32, 1, len(input_ids) + number, number, finish)
        finally:
            self.running -= 1

    def session(self, model: str, max_length: int) -> None:
        raise AssertionError("nothing here is driven step by step")
