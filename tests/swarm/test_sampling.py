from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swarm.sampling import Floats, Sampling, gumbel, pick

PINNED = [1.54487764, 2.885020332, -0.419753495]  # seed 1, position 2, tokens 0 to 2

logits_of = arrays(np.float32, st.integers(2, 200), elements=st.floats(-20, 20, width=32))


def probabilities(logits: Floats, sampling: Sampling, history: list[int]) -> torch.Tensor:
    """What Hugging Face's own processors make of the logits."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    scores = processors(torch.tensor([history], dtype=torch.long), torch.tensor(logits)[None])
    return scores[0].double().softmax(-1)


@given(
    logits=logits_of,
    temperature=st.floats(0.1, 3),
    top_k=st.sampled_from([0, 1, 5, 50]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 2**60),
    position=st.integers(1, 5000),
)
@settings(max_examples=300, deadline=None)
def test_only_tokens_that_hugging_face_would_draw_are_drawn(
    logits: Floats, seed: int, position: int, **parameters: float
) -> None:
    sampling = Sampling(seed=seed, **parameters)  # type: ignore[arg-type]
    history = [0, 1, len(logits) - 1]
    chance = probabilities(logits, sampling, history)[pick(logits, sampling, position, history).token]
    # Near a cut, single and double precision may decide a tie differently; those tokens are all but equally likely.
    spread = np.sort(logits)[::-1]
    if chance == 0 and len(np.unique(spread)) == len(spread) and np.min(-np.diff(spread)) > 1e-2:
        raise AssertionError(f"drew a token that Hugging Face cuts off: {sampling}")


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    counts = Counter(pick(logits, Sampling(temperature=1.0, seed=7), position).token for position in range(20_000))
    for token, share in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert counts[token] / 20_000 == pytest.approx(share, abs=0.015)
    nucleus = Sampling(temperature=1.0, top_p=0.75, seed=7)
    assert {pick(logits, nucleus, position).token for position in range(2000)} == {0, 1}


@given(
    seed=st.integers(0, 2**63 - 1), position=st.integers(0, 2**31 - 2), count=st.integers(2, 50), more=st.integers(1, 9)
)
def test_a_token_has_one_number_at_a_position_for_ever(seed: int, position: int, count: int, more: int) -> None:
    few, many = np.arange(count), np.arange(count + more)
    numbers = gumbel(seed, position, few)
    assert np.isfinite(numbers).all() and len(set(numbers)) > 1
    assert np.array_equal(numbers, gumbel(seed, position, many)[:count])  # whatever the vocabulary's size
    assert not np.array_equal(numbers, gumbel(seed, position + 1, few))


def test_the_numbers_of_a_position_are_part_of_the_protocol() -> None:
    """A server of another version must draw the same; a change here needs a new protocol version."""
    assert gumbel(1, 2, np.arange(3)).round(9).tolist() == PINNED


def test_logits_that_differ_in_the_last_bits_give_the_same_tokens() -> None:
    """Flat distributions over many tokens are the hard case."""
    random = np.random.default_rng(5)
    sampling = Sampling(temperature=1.0, seed=11)
    for position in range(300):
        logits = random.normal(size=20_000).astype(np.float32)
        noisy = logits + random.normal(scale=1e-5, size=len(logits)).astype(np.float32)
        assert pick(logits, sampling, position).token == pick(noisy, sampling, position).token


@given(logits=logits_of)
def test_greedy_takes_the_likeliest_and_the_first_of_equals(logits: Floats) -> None:
    assert pick(logits, Sampling(), 0).token == int(np.flatnonzero(logits == logits.max())[0])


def test_penalties_and_bias_are_openais() -> None:
    logits = np.array([1.0, 0.9, 0.0, 0.0], np.float32)
    history = [2, 0, 0, 1]  # the prompt is [2]
    assert pick(logits, Sampling(), 4, history, 1).token == 0
    # mu[j] - c[j] * frequency - (c[j] > 0) * presence
    assert pick(logits, Sampling(frequency_penalty=0.2), 4, history, 1).token == 1
    assert pick(logits, Sampling(presence_penalty=0.2), 4, history, 1).token == 0
    assert pick(logits, Sampling(presence_penalty=2.0), 4, history, 1).token == 2
    assert pick(logits, Sampling(logit_bias={3: 5.0, 99: 5.0}), 4).token == 3
    assert pick(logits, Sampling(logit_bias={0: -100.0}), 4).token == 1


@given(logits=logits_of, wanted=st.integers(0, 20))
def test_logprobs_are_the_models_own_whatever_the_sampling(logits: Floats, wanted: int) -> None:
    reference = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    chosen = pick(logits, Sampling(temperature=2.0, top_k=1, logprobs=wanted), 3)
    assert chosen.logprob == pytest.approx(float(reference[chosen.token]), abs=1e-9)
    assert [token for token, _ in chosen.top] == np.lexsort((np.arange(len(logits)), -logits))[:wanted].tolist()
    assert [value for _, value in chosen.top] == pytest.approx([float(reference[t]) for t, _ in chosen.top], abs=1e-9)


def test_a_nucleus_wider_than_the_shortlist_is_found() -> None:
    logits = np.zeros(20_000, np.float32)
    drawn = {pick(logits, Sampling(temperature=1.0, top_p=0.9, seed=1), position).token for position in range(300)}
    assert max(drawn) > 10_000


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("min_p", [0.0, 1.0])
def test_parameters_at_the_edge_of_what_is_allowed_still_pick_a_token(top_p: float, min_p: float) -> None:
    scores = np.array([1.0, 3.0, 2.0, -1.0], np.float32)
    for least in (5e-324, 1e-300, 1e-40):
        sampling = Sampling(temperature=least, top_p=top_p, min_p=min_p, seed=3)
        assert pick(scores, sampling, 0).token == 1
        penalised = Sampling(temperature=1.0, repetition_penalty=least, top_p=top_p, min_p=min_p)
        assert pick(scores, penalised, 4, [2, 3]).token == 2
