"""The whole model in this process, behind the interface that the gateway has to a swarm."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from routing import wire
from swarm import BadRequest, Notice, Sampling, ServedModel, SwarmError
from swarm.client.verify import Verdict
from swarm.grammar import GrammarCompiler
from swarm.sampling import pick
from swarm.tokenizer import Tokenizer

MODEL = "smollm2-135m"
BARE = "bare"  # the same model, without a tokenizer
PARTIAL = "partial"  # a model of which the last blocks are missing

AGREES = Verdict(wire.Hop("k" * 40, ("127.0.0.1:1",), 0, 15), checked=16, differing=0, worst=0.01)


def server(model: str, blocks: int = 30, start: int = 0, end: int = 30, **fields: object) -> wire.ServerInfo:
    return wire.ServerInfo(
        key="k" * 40,
        name="server-1",
        addresses=("127.0.0.1:1",),
        model=model,
        blocks=blocks,
        start=start,
        end=end,
        hidden_size=576,
        context_length=8192,
        backend="transformers",
        device="cpu",
        dtype="float32",
        state="ready",
        version="0.1.0",
        fingerprint={"config.json": "c0ffee"},
        **fields,  # type: ignore[arg-type]
    )


class WholeModel:
    """
    Attributes:
        trouble: raised in place of the next token, in every stream.
        notices: given out before the first token of every stream.
        running: how many streams are open.
        idle: set while none is.
        verdict: what a check of an answer says, or raises.
        checked: prompt and log-probabilities of each answer that was checked.
        given: tokens that came out of all streams.
        hold: streams wait before their first token until it is set.
        asked: the sampling of each stream, in order.
    """

    def __init__(self, folder: Path, context_length: int = 8192) -> None:
        self._tokenizer = Tokenizer.load(folder)
        self._grammars = GrammarCompiler(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._lock = threading.Lock()
        self._context = context_length
        self.trouble: SwarmError | Exception | None = None
        self.trouble_after = 0
        self.notices: list[str] = []
        self.running = 0
        self.idle = threading.Event()
        self.idle.set()
        self.asked: list[Sampling] = []
        self.given = 0
        self.verdict: Verdict | Exception = AGREES
        self.checked: list[tuple[list[int], list[float | None]]] = []
        self.hold = threading.Event()
        self.hold.set()

    def models(self) -> list[ServedModel]:
        return [
            ServedModel(BARE, 30, self._context, (server(BARE),), ()),
            ServedModel(PARTIAL, 30, self._context, (server(PARTIAL, end=20),), ((20, 30),)),
            ServedModel(MODEL, 30, self._context, (server(MODEL),), ()),
        ]

    async def tokenizer(self, model: str) -> Tokenizer | None:
        return None if model == BARE else self._tokenizer

    async def stream(
        self, model: str, input_ids: Sequence[int], max_new_tokens: int, sampling: Sampling | None = None
    ) -> AsyncIterator[wire.Token | Notice]:
        sampling = sampling or Sampling()
        self.asked.append(sampling)
        self.running += 1
        self.idle.clear()
        try:
            for text in self.notices:
                yield Notice(text)
            while not self.hold.is_set():
                await asyncio.sleep(0.01)
            self.check(input_ids)
            cache, ids, new = DynamicCache(), list(input_ids), list(input_ids)
            grammar = self._grammars.compile(sampling.grammar) if sampling.grammar else None
            for number in range(max_new_tokens):
                if self.trouble is not None and number >= self.trouble_after:
                    raise self.trouble
                logits = await asyncio.to_thread(self._forward, new, cache)
                self.given += 1
                position = len(ids)
                allowed = grammar.allowed(len(logits)) if grammar else None
                picked = pick(logits, sampling, position, ids, len(input_ids), allowed)
                finish = "length" if number + 1 == max_new_tokens else ""
                if picked.token in sampling.stop_ids or (grammar and grammar.ends(picked.token)):
                    finish = "stop"
                elif grammar:
                    grammar.take(picked.token)
                yield wire.Token("s" * 32, 1, position, picked.token, finish, picked.logprob, picked.top)  # type: ignore[arg-type]
                if finish:
                    return
                ids.append(picked.token)
                new = [picked.token]
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()

    def session(self, model: str, max_length: int) -> WholeSession:
        return WholeSession(self)

    async def verify(
        self,
        model: str,
        route: Sequence[wire.Hop],
        ids: Sequence[int],
        answer: Sequence[wire.Token],
        sampling: Sampling,
    ) -> Verdict:
        self.checked.append((list(ids), [token.logprob for token in answer]))
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    def check(self, ids: Sequence[int]) -> None:
        if not all(0 <= token < self._model.config.vocab_size for token in ids):
            raise BadRequest("a token id outside the vocabulary")

    def _forward(self, ids: list[int], cache: DynamicCache) -> np.ndarray:
        return self.logits(ids, cache)[-1]

    def logits(self, ids: Sequence[int], cache: DynamicCache) -> np.ndarray:
        with self._lock, torch.inference_mode():
            return self._model(torch.tensor([list(ids)]), past_key_values=cache).logits[0].numpy()

    def hidden(self, ids: Sequence[int], cache: DynamicCache) -> np.ndarray:
        with self._lock, torch.inference_mode():
            return self._model.model(torch.tensor([list(ids)]), past_key_values=cache).last_hidden_state[0].numpy()


class WholeSession:
    def __init__(self, model: WholeModel) -> None:
        self._model = model
        self._cache = DynamicCache()

    route = ()  # nobody else computes it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def step(self, input_ids: Sequence[int], output: str = "logits") -> np.ndarray:
        self._model.check(input_ids)
        compute = self._model.hidden if output == "hidden" else self._model.logits
        return await asyncio.to_thread(compute, input_ids, self._cache)
