"""Text generation of the command line: `swarm run` and `swarm-client`, and what they share with `swarm chat`."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Sequence

import click

from swarm.cli.options import GenerationOptions, generation_options
from swarm.client.client import ClientSession, SamplingOptions, ServedModel, SwarmClient
from swarm.client.verify import passed
from swarm.errors import SwarmError, UnknownModel
from swarm.models.resolve import match_spelling
from swarm.system.process import user_errors
from swarm.tokenizer import Detokenizer, Tokenizer


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@generation_options(128)
def client(options: GenerationOptions, model: str, prompt: str | None) -> None:
    """Continue PROMPT, or each line of standard input, as it stands (no chat template)."""
    with user_errors(), options.connect() as swarm:
        model = pick_model(swarm, model).name
        tokenizer = require_tokenizer(swarm, model)
        sampled = sampling_options(tokenizer, options.temperature, options.seed)
        for text in [prompt] if prompt is not None else map(str.rstrip, sys.stdin):
            if text:
                ids = tokenizer.encode(text)
                print_answer(swarm, model, ids, options.max_new_tokens, sampled, options.verify)


@click.command()
@click.argument("model")
@click.argument("prompt")
@generation_options(512)
def run(options: GenerationOptions, model: str, prompt: str) -> None:
    """Ask MODEL one question, through its chat template where it has one."""
    with user_errors(), options.connect() as swarm:
        model = pick_model(swarm, model).name
        tokenizer = require_tokenizer(swarm, model)
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.chat(messages) if tokenizer.has_chat_template else tokenizer.encode(prompt)
        sampled = sampling_options(tokenizer, options.temperature, options.seed)
        print_answer(swarm, model, ids, options.max_new_tokens, sampled, options.verify)


def pick_model(client: SwarmClient, name: str | None) -> ServedModel:
    """The named model, or the only one.

    Raises:
        UnknownModel: the swarm does not serve it, or none was named and it serves several or none.
    """
    models = client.models()
    if name is None:
        if len(models) != 1:
            names = ", ".join(model.name for model in models) or "none yet"
            raise UnknownModel(f"name a model; the swarm serves: {names}")
        name = models[0].name
    name = match_spelling(name, (model.name for model in models))
    for model in models:
        if model.name == name:
            return model
    raise UnknownModel(
        f"the swarm does not serve {name!r}; it serves: {', '.join(m.name for m in models) or 'none yet'}"
    )


def require_tokenizer(client: SwarmClient, model: str) -> Tokenizer:
    """The tokenizer of a model. Raises: SwarmError: it has none."""
    tokenizer = client.tokenizer(model)
    if tokenizer is None:
        raise SwarmError(f"{model} has no tokenizer, so there is nothing to turn text into tokens")
    return tokenizer


def seeded_sampling(temperature: float, seed: int | None) -> SamplingOptions:
    """Options of sampling, with a new random seed where none is given."""
    return SamplingOptions(temperature=temperature, seed=secrets.randbits(62) if seed is None else seed)


def sampling_options(tokenizer: Tokenizer, temperature: float, seed: int | None) -> SamplingOptions:
    """Options of sampling, and the ids of the tokenizer that end an answer."""
    return SamplingOptions(**{**seeded_sampling(temperature, seed), "stop_ids": tuple(sorted(tokenizer.stop_ids))})


def stream_text(
    session: ClientSession, tokenizer: Tokenizer, ids: Sequence[int], new: int, options: SamplingOptions
) -> Iterator[str]:
    """The answer's text, piece by piece as it comes; notices go to standard error."""
    detokenizer = Detokenizer(tokenizer)
    num_printed = len(session.notices)
    for token in session.stream(ids, new, **options):
        for notice in session.notices[num_printed:]:
            print(f"({notice})", file=sys.stderr, flush=True)
        num_printed = len(session.notices)
        if token not in options["stop_ids"]:
            yield detokenizer.push(token)
    yield detokenizer.flush()


def print_answer(
    client: SwarmClient, model: str, ids: Sequence[int], new: int, options: SamplingOptions, checks: int = 0
) -> None:
    """Print the answer to standard output as it comes, and check it so many times.

    Raises:
        SessionFailed: servers disagree about it.
    """
    tokenizer = require_tokenizer(client, model)
    with client.session(model, len(ids) + new) as session:
        for piece in stream_text(session, tokenizer, ids, new, with_logprobs(options, checks)):
            print(piece, end="", flush=True)
        print(flush=True)
        verify_answer(session, checks)


def with_logprobs(options: SamplingOptions, checks: int) -> SamplingOptions:
    """Options that also ask for the log-probabilities which `verify_answer` compares, where it will be called."""
    return SamplingOptions(**{**options, "logprobs": 0}) if checks else options


def verify_answer(session: ClientSession, times: int) -> None:
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


def continue_text(
    session: ClientSession, tokenizer: Tokenizer, ids: Sequence[int], new: int, options: SamplingOptions
) -> Iterator[str]:
    """The text that follows `ids`, of which only what differs from the session's sequence so far is computed.

    Raises:
        SwarmError: there is no room for it.
    """
    new = min(new, session.max_length - len(ids))
    if new < 1:
        raise SwarmError(
            f"the conversation has reached the session's limit of {session.max_length} tokens: /clear starts a new one"
        )
    shared = next((i for i, (a, b) in enumerate(zip(session.ids, ids, strict=False)) if a != b), None)
    session.position = min(len(session.ids), len(ids) - 1) if shared is None else min(shared, len(ids) - 1)
    return stream_text(session, tokenizer, ids[session.position :], new, options)
