"""Tasks: what a session is to do, and which answers to it an honest tail can give; pure.

Servers are members of the swarm, not friends. What they send decides nothing but the answer that they compute, and must
neither end the client's thread nor keep it waiting or growing for ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from backends.stage import Array, Output
from routing import wire
from swarm.sampling import Sampling


@dataclass(frozen=True)
class GenerateTask:
    """Continue a prompt until the sequence has `end` tokens, or a stop id comes."""

    prompt_length: int
    end: int
    sampling: Sampling

    def violation(self, token: wire.Token) -> str:
        """Why no honest tail says this; empty: it may."""
        if (token.finish == "length") != (token.position + 1 == self.end) and token.finish != "stop":
            return "it does not end the answer where it was asked to"
        # Where a grammar is fulfilled, the model's own end token ends the answer too.
        if token.finish == "stop" and token.token not in self.sampling.stop_ids and not self.sampling.grammar:
            return "it ends the answer for no reason"
        logprobs = [logprob for _, logprob in token.top] + [0.0 if token.logprob is None else token.logprob]
        if any(math.isnan(logprob) or logprob > 1e-3 for logprob in logprobs):  # rounding can make them positive
            return "its log-probabilities are none"
        return ""


@dataclass(frozen=True)
class StepTask:
    """Compute `ids` at `position`, and give the last `outputs` rows of `output`."""

    position: int
    ids: tuple[int, ...]
    output: Output
    outputs: int

    def violation(self, before: Sequence[Array], array: Array, last: bool) -> str:
        """The same of a part of the result, after those that came `before`."""
        rows = sum(map(len, before)) + (len(array) if array.ndim else 0)
        if array.ndim != 2 or any(part.shape[1] != array.shape[1] or part.dtype != array.dtype for part in before):
            return "its result has no shape"
        if rows > self.outputs or (last and rows < self.outputs):
            return f"it gives {rows} rows where {self.outputs} were wanted"
        return ""
