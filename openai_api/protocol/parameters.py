"""From a request to what the swarm is asked to do: sampling, stop tokens, lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from openai_api.errors import ApiError, context_length_exceeded
from openai_api.protocol.schemas import GenerationRequest
from swarm import Sampling, ServedModel

SEEDS = 1 << 63
CHAT_TOKENS = 2048  # of an answer whose length the caller leaves open; more would reserve memory that is rarely used
COMPLETION_TOKENS = 16  # OpenAI's default


def sampling_of(
    request: GenerationRequest, stop_ids: Iterable[int], seed: int, choice: int, grammar: str = ""
) -> Sampling:
    """How the tail picks the tokens of one choice. OpenAI's default temperature is 1, and 0 is greedy.

    Args:
        stop_ids: the tokens at which the model ends a text.
        seed: the request's, or a random one where it has none.
        choice: its number among the `n`; each has a seed of its own, the first one the request's.
        grammar: that the answer must follow.
    """
    temperature = 1.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    return Sampling(
        # A nucleus without any mass holds the likeliest token only.
        temperature=0.0 if top_p == 0 else temperature,
        top_p=top_p or 1.0,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias={int(token): float(bias) for token, bias in (request.logit_bias or {}).items()},
        stop_ids=tuple(sorted({*(() if request.ignore_eos else stop_ids), *(request.stop_token_ids or ())})),
        logprobs=request.alternatives,
        seed=(seed + choice) % SEEDS,
        grammar=grammar,
    )


def seed_of(request: GenerationRequest, draw: Callable[[], int]) -> int:
    """The request's seed, or one that `draw` makes: a request without a seed gets another answer each time."""
    return (draw() if request.seed is None else request.seed) % SEEDS


def longest_session(model: ServedModel) -> int | None:
    """Tokens that a session of this model can reserve: its context, or less where a block's KV caches are smaller.

    None where nothing bounds it.
    """
    bounds = [model.context_length] if model.context_length else []
    ready = [server for server in model.servers if server.state == "ready" and server.kv_tokens]
    for block in {server.start for server in ready}:
        bounds.append(max(server.kv_tokens for server in ready if server.start <= block < server.end))
    return min(bounds, default=None)


def new_tokens(wanted: int | None, default: int, prompt: int, model: ServedModel, param: str) -> int:
    """How many tokens to generate at most.

    Args:
        wanted: what the caller asked for; None for `default`, or less where no more fits.
        prompt: tokens of the prompt.
        param: the field that holds the prompt, for the message.

    Raises:
        ApiError: `context_length_exceeded`, or the prompt is empty.
    """
    if prompt == 0:
        raise ApiError(400, f"The {param} has no tokens. Give at least one.", param=param, code="empty_prompt")
    context = model.context_length
    if context and prompt + (1 if wanted is None else wanted) > context:
        raise context_length_exceeded(context, prompt, 1 if wanted is None else wanted, param)
    if wanted is not None:
        return wanted
    bound = longest_session(model)
    return default if bound is None else max(1, min(default, bound - prompt))
