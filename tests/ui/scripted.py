"""A swarm that says what a test tells it to, when it tells it to, behind the real gateway."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from routing import wire
from routing.view import View
from swarm import Notice, Sampling, ServedModel, SwarmError
from swarm.client.driver import Link
from swarm.tokenizer import Tokenizer
from tests.openai_api.engine import MODEL, server


class Scripted:
    """
    Attributes:
        served: the models that there are.
        asked: how many answers were begun.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.load(folder)
        self._script: queue.SimpleQueue[str | SwarmError] = queue.SimpleQueue()
        self.served = [ServedModel(MODEL, 30, 8192, (server(MODEL),), ())]
        self.asked = 0
        self.view = View()  # for the console, which has nothing to show

    def say(self, *words: str) -> None:
        """The next words of the answer; an empty one ends it."""
        for word in words:
            self._script.put(word)

    def fail(self, error: SwarmError) -> None:
        self._script.put(error)

    async def links(self) -> dict[str, Link]:
        return {}

    def models(self) -> list[ServedModel]:
        return self.served

    async def tokenizer(self, model: str) -> Tokenizer | None:
        return self._tokenizer

    async def stream(
        self, model: str, input_ids: Sequence[int], max_new_tokens: int, sampling: Sampling | None = None
    ) -> AsyncIterator[wire.Token | Notice]:
        assert self._tokenizer is not None and sampling is not None
        self.asked += 1
        position = len(input_ids)
        while True:
            word = await asyncio.to_thread(self._next)
            if word is None:
                continue
            if isinstance(word, SwarmError):
                raise word
            tokens = self._tokenizer.encode(word) if word else [min(sampling.stop_ids)]
            for token in tokens:
                yield wire.Token("s" * 32, 1, position, token, "" if word else "stop")
                position += 1
            if not word:
                return

    def _next(self) -> str | SwarmError | None:
        try:
            return self._script.get(timeout=0.1)  # so that a gateway that shuts down need not wait for a word
        except queue.Empty:
            return None
