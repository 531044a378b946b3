"""Log-probabilities of a prompt's own tokens: what `echo` with `logprobs` asks for, and evaluations live on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from openai_api.accounts.usage import WorkRecord
from openai_api.generation.choice import TokenEntry
from openai_api.generation.engine import Engine
from swarm.tokenizer import Tokenizer

PART = 64  # tokens whose logits are held at a time: 50 MB for a vocabulary of 200,000


async def scored(
    engine: Engine, model: str, ids: Sequence[int], top: int, offsets: Sequence[int], work: WorkRecord
) -> list[TokenEntry]:
    """The tokens of a prompt with their log-probabilities under the model.

    Args:
        top: how many of the likeliest tokens to report in each place.
        offsets: as `offsets_of` gives them.
        work: is told what the swarm computes for it.
    """
    entries = [TokenEntry(ids[0], offsets[0], None, ())]
    async with engine.session(model, len(ids)) as session:
        for start in range(0, len(ids) - 1, PART):
            # The logits of one position say how likely the next token is.
            part, following = ids[start : start + PART], ids[start + 1 : start + PART + 1]
            logits = await session.step(part)
            work.computed(session.route, len(part))
            found = await asyncio.to_thread(logprobs_of, logits[: len(following)], following, top)
            entries += [
                TokenEntry(token, offset, logprob, best)
                for token, offset, (logprob, best) in zip(following, offsets[start + 1 :], found, strict=False)
            ]
    return entries


def logprobs_of(
    logits: npt.NDArray[np.float32], tokens: Sequence[int], top: int
) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    """For each row the log-probability of the row's token, and the likeliest tokens with theirs.

    Args:
        logits: `[rows, vocab]`.
        tokens: one for each row.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    found = []
    for row, token in zip(logprobs, tokens, strict=True):
        best = np.argpartition(-row, min(top, len(row) - 1))[:top] if top else np.empty(0, np.intp)
        best = best[np.lexsort((best, -row[best]))]
        found.append((float(row[token]), tuple((int(i), float(row[i])) for i in best)))
    return found


def offsets_of(tokenizer: Tokenizer | None, ids: Sequence[int], length: int) -> list[int]:
    """Where each token's text begins in the prompt, which is `length` characters long."""
    if tokenizer is None:
        return [0] * len(ids)
    detokenizer, offsets, at = tokenizer.detokenizer(skip_special_tokens=False), [], 0
    for token in ids:
        offsets.append(min(at, length))
        at += len(detokenizer.push(token))
    return offsets
