"""What a request asks for is what the swarm is asked for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_api.errors import ApiError
from openai_api.protocol.chat import ChatRequest
from openai_api.protocol.parameters import longest_session, new_tokens, sampling_of, seed_of
from openai_api.protocol.schemas import CompletionRequest
from swarm import Sampling, ServedModel
from tests.openai_api.engine import server

MESSAGES = [{"role": "user", "content": "hi"}]


def floats(least: float, most: float) -> st.SearchStrategy[float | int | None]:
    return st.none() | st.floats(least, most) | st.integers(int(least), int(most))


fields = st.fixed_dictionaries(
    {},
    optional={
        "temperature": floats(0, 2),
        "top_p": floats(0, 1),
        "top_k": st.none() | st.integers(-1, 1000),
        "min_p": floats(0, 1),
        "repetition_penalty": st.none() | st.floats(0.01, 100),
        "presence_penalty": floats(-2, 2),
        "frequency_penalty": floats(-2, 2),
        "seed": st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        "logit_bias": st.none() | st.dictionaries(st.integers(0, 100_000).map(str), st.integers(-100, 100), max_size=3),
        "stop_token_ids": st.none() | st.lists(st.integers(0, 1000), max_size=3),
        "ignore_eos": st.none() | st.booleans(),
        "logprobs": st.none() | st.integers(0, 20),
    },
)


@given(fields, st.integers(0, (1 << 63) - 1), st.integers(0, 127))
def test_every_request_becomes_a_sampling_that_the_protocol_takes(
    asked: dict[str, Any], drawn: int, choice: int
) -> None:
    request = CompletionRequest.model_validate({"model": "m", "prompt": "p", **asked})
    sampling = sampling_of(request, {2, 7}, seed_of(request, lambda: drawn), choice)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=Sampling) == sampling

    temperature = 1.0 if asked.get("temperature") is None else asked["temperature"]
    assert sampling.temperature == (0 if asked.get("top_p") == 0 else temperature)
    assert sampling.top_k == max(asked.get("top_k") or 0, 0)
    assert sampling.logprobs == (-1 if asked.get("logprobs") is None else asked["logprobs"])
    assert set(sampling.stop_ids) == (set() if asked.get("ignore_eos") else {2, 7}) | set(
        asked.get("stop_token_ids") or ()
    )
    assert sampling.logit_bias == {int(k): v for k, v in (asked.get("logit_bias") or {}).items()}
    seed = drawn if asked.get("seed") is None else asked["seed"]
    assert (sampling.seed - seed - choice) % (1 << 63) == 0


def test_a_request_that_says_nothing_samples_as_openai_does() -> None:
    request = CompletionRequest.model_validate({"model": "m", "prompt": "p"})
    assert sampling_of(request, (2,), 5, 0) == Sampling(temperature=1.0, stop_ids=(2,), seed=5)


@pytest.mark.parametrize(
    ("asked", "expected"), [({}, -1), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)]
)
def test_chats_ask_for_log_probabilities_by_two_fields(asked: dict[str, Any], expected: int) -> None:
    request = ChatRequest.model_validate({"model": "m", "messages": MESSAGES, **asked})
    assert sampling_of(request, (), 0, 0).logprobs == expected


def model(context: int, *spans: tuple[int, int, int]) -> ServedModel:
    """Spans as (start, end, KV tokens)."""
    servers = tuple(server("m", 4, start, end, kv_tokens=tokens) for start, end, tokens in spans)
    return ServedModel("m", 4, context, servers, ())


@given(
    wanted=st.none() | st.integers(0, 300),
    prompt=st.integers(0, 300),
    context=st.just(0) | st.integers(1, 300),
    kv=st.integers(1, 300),
)
def test_what_is_generated_fits_the_context(wanted: int | None, prompt: int, context: int, kv: int) -> None:
    try:
        new = new_tokens(wanted, 64, prompt, model(context, (0, 4, kv)), "prompt")
    except ApiError as error:
        assert error.status == 400
        if error.code == "empty_prompt":
            assert prompt == 0
        else:
            assert error.code == "context_length_exceeded"
            assert prompt + (1 if wanted is None else wanted) > context > 0
        return
    assert not context or prompt + new <= context
    assert new == wanted if wanted is not None else 1 <= new <= 64
    # What the caller leaves open is no more than the servers can hold, unless not even the prompt fits.
    assert wanted is not None or prompt + new <= kv or new == 1


def test_a_session_is_bounded_by_the_block_whose_best_server_holds_least() -> None:
    assert longest_session(model(1000, (0, 2, 500), (0, 2, 700), (2, 4, 600))) == 600
    assert longest_session(model(100, (0, 4, 500))) == 100
    assert longest_session(model(0)) is None
