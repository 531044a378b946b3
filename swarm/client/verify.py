"""Verify: whether an answer is what a second route would have given; pure.

The second route computes the logits of some positions anew. Numerics differ a little between servers (batch shapes,
number formats), so log-probabilities are compared within a tolerance, and a few tokens may fall on the other side of a
near tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.stage import Array
from routing import wire
from swarm.errors import SessionFailed
from swarm.sampling import Sampling, log_softmax, pick

TOLERANCE = 0.25  # nats
MOST_TIES = 0.25  # of the tokens that were compared


@dataclass(frozen=True)
class Verdict:
    """Verdict on an answer.

    Attributes:
        hop: the one that the second route replaced by another server.
        checked: tokens that were compared.
        differing: those that the second route would not have picked.
        worst: the largest difference between two log-probabilities of a token, in nats.
    """

    hop: wire.Hop
    checked: int
    differing: int
    worst: float

    @property
    def agrees(self) -> bool:
        return self.worst <= TOLERANCE and self.differing <= MOST_TIES * self.checked

    @property
    def blocks(self) -> str:
        """Those that another server has computed anew."""
        return f"{self.hop.start}:{self.hop.end}"

    def demand(self) -> None:
        """Raises: SessionFailed: servers disagree about the answer."""
        if not self.agrees:
            raise SessionFailed(
                f"do not trust this answer: with another server of blocks {self.blocks} it would be different "
                f"({self.differing} of {self.checked} tokens, log-probabilities {self.worst:.2f} apart)"
            )


def passed(verdicts: Sequence[Verdict]) -> str:
    """What is said of an answer that all agree about."""
    return f"verified with other servers of blocks {', '.join(verdict.blocks for verdict in verdicts)}"


def compare(
    logits: Array,
    ids: Sequence[int],
    start: int,
    logprobs: Sequence[float],
    sampling: Sampling,
    prompt_length: int,
    hop: wire.Hop,
) -> Verdict:
    """
    Args:
        logits: `[tokens, vocab]` by the second route, those of the tokens at `start` and after.
        ids: the whole sequence, prompt and answer.
        logprobs: what the first route said of the tokens at `start` and after.
    """
    differing, worst = 0, 0.0
    for offset, (row, logprob) in enumerate(zip(logits, logprobs, strict=True)):
        position = start + offset
        # What a grammar would have allowed is not known here, so only the log-probabilities speak for such an answer.
        if not sampling.grammar:
            differing += pick(row, sampling, position, ids[:position], prompt_length).token != ids[position]
        worst = max(worst, abs(float(log_softmax(row)[ids[position]]) - logprob))
    return Verdict(hop, len(logits), differing, worst)
