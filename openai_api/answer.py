"""An answer while it is made: the choices that the swarm generates side by side, whole or as a stream of events.

The stream is server-sent events as OpenAI sends them: `data: {chunk}` lines, the last one `data: [DONE]`.
Comments (lines that begin with a colon) carry the swarm's notices and keep quiet connections open; clients skip them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from openai_api.choice import Choice, Entry, Finish, Piece
from openai_api.engine import Engine, Step
from openai_api.merging import Quiet, merged
from openai_api.metrics import Metrics
from openai_api.scoring import offsets_of, scored
from routing import wire
from swarm import Notice, Routed, Sampling
from swarm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Json = dict[str, Any]
AT_ONCE = 16  # choices of one request that are generated at the same time
# s of silence after which a stream shows that it lives. Longer than the swarm waits for room on servers that are full,
# so that an overload is still answered with a status of its own.
QUIET = 15.0
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """What the swarm is asked to do for one choice.

    Attributes:
        echo: the prompt's text where the choice begins with it; None where it does not.
    """

    input_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    echo: str | None = None


class Form(Protocol):
    """How completions, or chat completions, write things down. Every method gives an item of `choices`."""

    @property
    def whole_object(self) -> str:
        """What the field `object` says, and of a stream's chunks `chunk_object`."""
        ...

    @property
    def chunk_object(self) -> str: ...

    def opening(self, index: int) -> Json | None:
        """What comes before the first piece of a choice, if anything."""
        ...

    def chunk(self, index: int, piece: Piece) -> Json: ...

    def closing(self, index: int, finish: Finish) -> Json: ...

    def whole(self, index: int, piece: Piece) -> Json:
        """A choice that was not streamed; `piece` holds all of it."""
        ...


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        model: the model's name in the swarm.
        created: seconds since the epoch.
        prompt_tokens: of all prompts together; a prompt that several choices share counts once.
        token_ids: whether choices show token ids beside text.
        usage: whether a stream ends with what it has used.
        notices: what has happened on the way so far; the routes are among them.
    """

    id: str
    model: str
    created: int
    fingerprint: str
    form: Form
    plans: tuple[Plan, ...]
    tokenizer: Tokenizer | None
    stops: tuple[str, ...]
    prompt_tokens: int
    token_ids: bool
    usage: bool
    notices: list[Notice] = field(default_factory=list, compare=False)

    def head(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


async def whole(answer: Answer, engine: Engine, metrics: Metrics) -> Json:
    """The body of an answer that is not streamed."""
    pieces: list[list[Piece]] = [[] for _ in answer.plans]
    async with aclosing(_items(answer, engine, metrics)) as items:
        async for item in items:
            if not isinstance(item, Quiet) and isinstance(item[1], Piece):
                pieces[item[0]].append(item[1])
    choices = []
    for index, parts in enumerate(pieces):
        piece = joined(parts)
        choices.append(answer.form.whole(index, piece) | _ids(answer, piece.tokens))
    used = sum(len(piece.tokens) for parts in pieces for piece in parts)
    return {**answer.head(answer.form.whole_object), "choices": choices, "usage": usage(answer.prompt_tokens, used)}


async def events(answer: Answer, engine: Engine, metrics: Metrics, quiet: float = QUIET) -> AsyncGenerator[bytes, None]:
    """The events of an answer that is streamed. Errors are raised; how they are sent depends on what went before.

    Notices that come before the first token wait for it: as long as nothing is sent, an error has a status of its own.
    """
    opened: set[int] = set()
    waiting: list[bytes] = []
    begun = False
    used = 0
    async with aclosing(_items(answer, engine, metrics, quiet)) as items:
        async for item in items:
            match item:
                case Quiet():
                    waiting.append(_comment("still working"))
                    begun = True
                case (_, Notice(text)):
                    waiting.append(_comment(text))
                case (index, Piece() as piece):
                    waiting.extend(_piece_events(answer, index, piece, first=index not in opened))
                    opened.add(index)
                    used += len(piece.tokens)
                    begun = True
            if begun:
                for event in waiting:
                    yield event
                waiting.clear()
    if answer.usage:
        yield _event(answer, [], usage(answer.prompt_tokens, used))
    yield DONE


def joined(pieces: Sequence[Piece]) -> Piece:
    """All pieces of a choice as one."""
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(entry for piece in pieces for entry in piece.entries),
        tuple(token for piece in pieces for token in piece.tokens),
        pieces[-1].finish if pieces else "",
    )


def usage(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def top_of(entry: Entry) -> list[tuple[int, float]]:
    """The likeliest tokens with log-probabilities that JSON can hold."""
    return [(token, number(logprob)) for token, logprob in entry.top]


def number(logprob: float) -> float:
    """JSON knows no infinity; OpenAI writes -9999.0 for a token that is out of the question."""
    return max(logprob, -9999.0)


def sse(content: Json) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _piece_events(answer: Answer, index: int, piece: Piece, first: bool) -> Iterator[bytes]:
    if first and (opening := answer.form.opening(index)) is not None:
        yield _event(answer, [opening])
    if piece.text or piece.entries or (answer.token_ids and piece.tokens):
        yield _event(answer, [answer.form.chunk(index, piece) | _ids(answer, piece.tokens)])
    if piece.finish:
        yield _event(answer, [answer.form.closing(index, piece.finish)])


def _comment(text: str) -> bytes:
    return f": {' '.join(text.split())}\n\n".encode()


def _event(answer: Answer, choices: list[Json], used: Json | None = None) -> bytes:
    chunk = {**answer.head(answer.form.chunk_object), "choices": choices}
    return sse(chunk | {"usage": used} if answer.usage else chunk)


def _ids(answer: Answer, tokens: tuple[int, ...]) -> Json:
    return {"token_ids": list(tokens)} if answer.token_ids else {}


async def _echo(answer: Answer, plan: Plan, text: str, engine: Engine) -> Piece:
    top = plan.sampling.logprobs
    if top < 0:
        return Piece(text)
    offsets = offsets_of(answer.tokenizer, plan.input_ids, len(text))
    return Piece(text, tuple(await scored(engine, answer.model, plan.input_ids, top, offsets)))


def _items(
    answer: Answer, engine: Engine, metrics: Metrics, quiet: float = QUIET
) -> AsyncGenerator[tuple[int, Piece | Notice] | Quiet, None]:
    return merged([_pieces(answer, plan, engine, metrics) for plan in answer.plans], AT_ONCE, quiet)


async def _pieces(answer: Answer, plan: Plan, engine: Engine, metrics: Metrics) -> AsyncGenerator[Piece | Notice, None]:
    """One choice, until it ends."""
    if plan.echo is not None:
        yield await _echo(answer, plan, plan.echo, engine)
    choice = Choice(answer.tokenizer, answer.stops, len(plan.echo or ""))
    if plan.max_new_tokens == 0:
        yield choice.end()
        return
    # An async generator, as `Engine` says; its type cannot say so without forbidding the swarm client's.
    steps = cast(
        AsyncGenerator[Step, None],
        engine.stream(answer.model, plan.input_ids, max_new_tokens=plan.max_new_tokens, sampling=plan.sampling),
    )
    with metrics.generation(answer.model) as timed:
        async with aclosing(steps):
            async for step in steps:
                if not isinstance(step, wire.Token):
                    answer.notices.append(step)
                    if isinstance(step, Routed):
                        continue
                    log.info("%s: %s", answer.id, step.text)
                    yield step
                    continue
                timed.token()
                piece = choice.push(step)
                yield piece
                if piece.finish:
                    return
        yield choice.end()
