"""`swarm chat`, `swarm run` and `swarm-client`: text in, text out, in a terminal."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Sequence

from swarm.client.client import ClientSession, SamplingOptions, ServedModel, SwarmClient
from swarm.client.verify import passed
from swarm.errors import SwarmError, UnknownModel
from swarm.models.resolve import as_spelled
from swarm.tokenizer import Detokenizer, Tokenizer


def pick_model(client: SwarmClient, name: str | None) -> ServedModel:
    """The named model, or the only one; incomplete ones are refused with the blocks that are missing."""
    models = client.models()
    if name is None:
        if len(models) != 1:
            names = ", ".join(model.name for model in models) or "none yet"
            raise UnknownModel(f"name a model; the swarm serves: {names}")
        name = models[0].name
    name = as_spelled(name, (model.name for model in models))
    for model in models:
        if model.name == name:
            return model
    raise UnknownModel(
        f"the swarm does not serve {name!r}; it serves: {', '.join(m.name for m in models) or 'none yet'}"
    )


def tokenizer_of(client: SwarmClient, model: str) -> Tokenizer:
    tokenizer = client.tokenizer(model)
    if tokenizer is None:
        raise SwarmError(f"{model} has no tokenizer, so there is nothing to turn text into tokens")
    return tokenizer


def sampling(temperature: float, seed: int | None) -> SamplingOptions:
    return SamplingOptions(temperature=temperature, seed=secrets.randbits(62) if seed is None else seed)


def sampling_options(tokenizer: Tokenizer, temperature: float, seed: int | None) -> SamplingOptions:
    """The same, and where to stop."""
    return SamplingOptions(**{**sampling(temperature, seed), "stop_ids": tuple(sorted(tokenizer.stop_ids))})


def pieces(
    session: ClientSession, tokenizer: Tokenizer, ids: Sequence[int], new: int, options: SamplingOptions
) -> Iterator[str]:
    """The answer's text as it comes; notices go to standard error."""
    detokenizer = Detokenizer(tokenizer)
    told = len(session.notices)
    for token in session.stream(ids, new, **options):
        for notice in session.notices[told:]:
            print(f"({notice})", file=sys.stderr, flush=True)
        told = len(session.notices)
        if token not in options["stop_ids"]:
            yield detokenizer.push(token)
    yield detokenizer.flush()


def answer(
    client: SwarmClient, model: str, ids: Sequence[int], new: int, options: SamplingOptions, checks: int = 0
) -> None:
    """Print the answer to standard output as it comes, and check it so many times.

    Raises:
        SessionFailed: servers disagree about it.
    """
    tokenizer = tokenizer_of(client, model)
    with client.session(model, len(ids) + new) as session:
        for piece in pieces(session, tokenizer, ids, new, checkable(options, checks)):
            print(piece, end="", flush=True)
        print(flush=True)
        verify(session, checks)


def checkable(options: SamplingOptions, checks: int) -> SamplingOptions:
    """With what `verify` compares."""
    return SamplingOptions(**{**options, "logprobs": 0}) if checks else options


def verify(session: ClientSession, times: int) -> None:
    """Have parts of the session's last answer computed anew.

    Raises:
        SessionFailed: servers disagree about it.
    """
    verdicts = []
    for _ in range(times):
        verdicts.append(session.verify())
        verdicts[-1].demand()
    if verdicts:
        print(f"({passed(verdicts)})", file=sys.stderr, flush=True)


def continued(
    session: ClientSession, tokenizer: Tokenizer, ids: Sequence[int], new: int, options: SamplingOptions
) -> Iterator[str]:
    """The text that follows `ids`, of which only what differs from the session's sequence so far is computed.

    Raises:
        SwarmError: there is no room for it.
    """
    new = min(new, session.max_length - len(ids))
    if new < 1:
        raise SwarmError("the conversation is as long as the session: /clear starts a new one")
    shared = next((i for i, (a, b) in enumerate(zip(session.ids, ids, strict=False)) if a != b), None)
    session.position = min(len(session.ids), len(ids) - 1) if shared is None else min(shared, len(ids) - 1)
    return pieces(session, tokenizer, ids[session.position :], new, options)
