"""From logits to a token, without state.

The random numbers of a position come from `(seed, position)` alone, so any tail that is given the same logits picks the
same token, whatever happened before on whichever server; and nearly always the same one where logits nearly are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from routing import wire
from routing.wire import Sampling

__all__ = ["GREEDY", "Pick", "Sampling", "gumbel", "looks_back", "pick"]

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.intp]
GREEDY = Sampling()
# Sorting a whole vocabulary to find a nucleus costs 10 ms at 150,000 tokens; the nucleus is nearly always inside the
# likeliest few thousand, and where it is not the whole vocabulary is sorted.
_SHORTLIST = 4096
_LEAST_PENALTY = 1e-6  # what is smaller would make logits infinite


@dataclass(frozen=True, slots=True)
class Pick:
    """A token, its log-probability under the model (before any sampling parameter), and the likeliest alternatives."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def looks_back(sampling: Sampling) -> bool:
    """Whether the sequence so far must be known: to `pick`, or for what it is told to be allowed."""
    return bool(sampling.grammar) or _penalises(sampling)


def _penalises(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def gumbel(seed: int, position: int, tokens: Tokens) -> npt.NDArray[np.float64]:
    """The numbers of the standard Gumbel distribution that belong to these token ids at a position.

    From the raw numbers of Philox, a counter-based generator (Salmon et al., SC 2011), the same in every NumPy.
    """
    raw = np.random.Philox(key=seed, counter=position << 64).random_raw(int(tokens.max()) // 2 + 1)
    halves = raw.astype("<u8", copy=False).view("<u4")[tokens]
    return -np.log(-np.log((halves + 0.5) * 2.0**-32))


def pick(
    logits: Floats,
    sampling: Sampling,
    position: int,
    history: Sequence[int] = (),
    prompt_length: int = 0,
    allowed: npt.NDArray[np.bool_] | None = None,
) -> Pick:
    """Pick the token of `position`.

    In this order: logit bias; repetition penalty over the whole history (Keskar et al., arXiv 1909.05858, as in
    Hugging Face generate); presence and frequency penalty over the generated part (OpenAI's formula); what is not
    allowed is left out; temperature 0 takes the likeliest, otherwise temperature, top-k, top-p (nucleus), min-p, then
    one draw.

    Args:
        logits: `[vocab]` float32.
        position: of the token to be picked, in the sequence.
        history: the token ids before `position`; may be empty unless `looks_back(sampling)`.
        prompt_length: how many of them the user gave.
        allowed: `[vocab]`, by the grammar of the sampling (`swarm.grammar`), with at least one; None: all are.
    """
    scores = _penalised(logits, sampling, history, prompt_length)
    if allowed is not None:
        scores = np.where(allowed, scores, np.float32(-np.inf))
    token = int(scores.argmax()) if sampling.temperature == 0 else _draw(scores, sampling, position)
    if sampling.logprobs < 0:
        return Pick(token)
    logprobs = log_softmax(logits)
    best = _largest(logits, sampling.logprobs)
    return Pick(token, float(logprobs[token]), tuple((int(i), float(logprobs[i])) for i in best))


def _penalised(logits: Floats, sampling: Sampling, history: Sequence[int], prompt_length: int) -> Floats:
    if not sampling.logit_bias and not (history and _penalises(sampling)):
        return logits
    scores = logits.copy()
    for token, bias in sampling.logit_bias.items():
        if token < len(scores):
            scores[token] += np.float32(bias)
    if sampling.repetition_penalty != 1.0 and history:
        seen = np.unique(np.asarray(history))
        values = scores[seen]
        penalty = np.float32(max(sampling.repetition_penalty, _LEAST_PENALTY))
        scores[seen] = np.where(values < 0, values * penalty, values / penalty)
    generated = history[prompt_length:]
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        tokens, counts = np.unique(np.asarray(generated), return_counts=True)
        scores[tokens] -= np.float32(sampling.presence_penalty) + np.float32(sampling.frequency_penalty) * counts
    return scores


def _draw(scores: Floats, sampling: Sampling, position: int) -> int:
    """The Gumbel-max trick: the largest of the scores, each with a number of its own, is a draw from their softmax.

    Servers compute logits that differ in the last bits. That moves every boundary of a cumulative distribution, so a
    draw by its inverse would often come out differently; which perturbed score is the largest seldom changes.
    """
    # The largest is 0, so a temperature next to 0 makes nothing infinite but what is impossible anyway.
    with np.errstate(over="ignore"):
        scaled = (scores.astype(np.float64) - float(scores.max())) / sampling.temperature
    kept = _largest(scaled, sampling.top_k) if sampling.top_k else np.arange(len(scaled))
    if sampling.top_p < 1:
        kept = _nucleus(scaled, kept, sampling.top_p)
    if sampling.min_p > 0:
        kept = kept[scaled[kept] >= math.log(sampling.min_p)]
    return int(kept[(scaled[kept] + gumbel(sampling.seed, position, kept)).argmax()])


def _nucleus(scaled: npt.NDArray[np.float64], kept: Tokens, top_p: float) -> Tokens:
    """The smallest set of the likeliest of `kept` whose mass reaches `top_p` of theirs."""
    everything = np.exp(scaled[kept]).sum()
    for count in (_SHORTLIST, len(kept)):
        likeliest: Tokens = kept[_largest(scaled[kept], count)]
        weights = np.exp(scaled[likeliest])
        if count >= len(kept) or weights.sum() >= top_p * everything:
            break
    # A token stays if the mass before it does not reach top_p yet.
    before: npt.NDArray[np.float64] = np.cumsum(weights) - weights
    return likeliest[: int(np.searchsorted(before, top_p * everything))]


def _largest(values: npt.NDArray[np.floating], count: int) -> Tokens:
    """Indices of the `count` largest values, largest first; equal values by index."""
    count = min(count, len(values))
    if count == 0:
        return np.empty(0, np.intp)
    if count < len(values):
        least = np.partition(values, -count)[-count]
        above = np.flatnonzero(values > least)
        chosen = np.concatenate([above, np.flatnonzero(values == least)[: count - len(above)]])
    else:
        chosen = np.arange(len(values))
    return chosen[np.lexsort((chosen, -values[chosen]))]


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """`[vocab]` log-probabilities."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return shifted - float(np.log(np.exp(shifted).sum()))


class Grammar(Protocol):
    """Grammar of an answer, at the place where the answer stands (`swarm.grammar.Constraint`)."""

    def allowed(self, width: int) -> npt.NDArray[np.bool_]: ...

    def ends(self, token: int) -> bool: ...

    def take(self, token: int) -> None: ...


def sample_token(
    generation: wire.Generation, position: int, logits: Floats, history: list[int], grammar: Grammar | None
) -> tuple[Pick, Literal["", "stop", "length"]]:
    """The token of `position` and whether it ends the answer, from `[vocab]` logits.

    Args:
        history: the sequence so far, where the sampling looks back at it; the token is added to it then.
        grammar: is moved past the token.
    """
    sampling = generation.sampling
    allowed = grammar.allowed(len(logits)) if grammar else None
    chosen = pick(logits, sampling, position, history, generation.prompt_length, allowed)
    if looks_back(sampling):
        history.append(chosen.token)
    if chosen.token in sampling.stop_ids or (grammar and grammar.ends(chosen.token)):
        return chosen, "stop"
    if position + 1 >= generation.end:
        return chosen, "length"
    if grammar:
        grammar.take(chosen.token)
    return chosen, ""
