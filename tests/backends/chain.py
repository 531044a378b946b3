"""A row of stages that hold a whole model between them, driven as servers would be: batch by batch, hop by hop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from backends import Backend, Batch, Options, Row, Span, Stage
from backends.stage import Array, Output

CPU = Options(device="cpu", dtype="float32")


class Chain:
    """Stages cut at `cuts`, and the length of every session in them."""

    def __init__(self, stages: Sequence[Stage], route: Sequence[Span] | None = None) -> None:
        self.stages = stages
        self.route = list(route or (stage.span for stage in stages))
        self.lengths: dict[str, int] = {}

    @classmethod
    def load(cls, backend: Backend, model: Path, cuts: Sequence[int], options: Options = CPU) -> Chain:
        return cls([backend.load(model, Span(*span), options) for span in pairwise(cuts)])

    @property
    def batched(self) -> bool:
        return all(stage.batched for stage in self.stages)

    def step(
        self, pieces: Mapping[str, Sequence[int]], outputs: Mapping[str, int] | None = None, output: Output = "logits"
    ) -> dict[str, Array]:
        """Send some tokens of some sessions through all stages, in one batch where the stages can.

        Returns:
            for each session, the tail's outputs of its last token, or of as many as `outputs` says.
        """
        groups = [list(pieces)] if self.batched else [[session] for session in pieces]
        out: dict[str, Array] = {}
        for group in groups:
            out |= self._run({session: pieces[session] for session in group}, outputs or {}, output)
        return out

    def _run(self, pieces: Mapping[str, Sequence[int]], outputs: Mapping[str, int], output: Output) -> dict[str, Array]:
        rows = [Row(s, self.lengths.get(s, 0), len(ids), outputs.get(s, 1)) for s, ids in pieces.items()]
        x: Array = np.array([token for ids in pieces.values() for token in ids], np.int32)
        for stage, span in zip(self.stages, self.route, strict=True):
            x = stage.forward(Batch(x, rows, span, output))
        for row in rows:
            self.lengths[row.session] = row.position + row.length
        ends = np.cumsum([row.outputs for row in rows])
        return {row.session: x[end - row.outputs : end] for row, end in zip(rows, ends, strict=True)}

    def truncate(self, session: str, length: int) -> None:
        for stage in self.stages:
            stage.truncate(session, length)
        self.lengths[session] = length

    def free(self, session: str) -> None:
        for stage in self.stages:
            stage.free(session)
        self.lengths.pop(session, None)

    def generate(
        self, prompts: Sequence[Sequence[int]], new: int, *, chunk: int = 7, apart: int = 2
    ) -> list[list[int]]:
        """Greedy tokens after each prompt; prompts come `apart` steps after each other and in chunks.

        Chunks of late prompts share batches with single tokens of earlier ones. The sessions are called "0", "1", ...
        and stay.
        """
        out: list[list[int]] = [[] for _ in prompts]
        waiting = [list(prompt) for prompt in prompts]
        step = 0
        while any(len(tokens) < new for tokens in out):
            here = [i for i, tokens in enumerate(out) if len(tokens) < new and step >= apart * i]
            pieces = {str(i): waiting[i][:chunk] for i in here}
            last = {str(i): int(len(waiting[i]) <= chunk) for i in here}
            for i in here:
                waiting[i] = waiting[i][chunk:]
            for session, logits in self.step(pieces, last).items():
                if len(logits):
                    token = int(logits[-1].argmax())
                    out[int(session)].append(token)
                    waiting[int(session)] = [token]
            step += 1
        return out
