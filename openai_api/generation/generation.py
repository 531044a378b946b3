"""An answer while it is made: the choices that the swarm generates side by side, whole or as a stream of events.

How it is written down is the matter of an `AnswerFormat`: chunks of OpenAI's chat and completions
(`openai_api.protocol.chunks`), of its responses, of Anthropic's messages. A stream is server-sent events. Comments
(lines that begin with a colon) carry the swarm's notices and keep quiet connections open; clients skip them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from openai_api.accounts.usage import WorkRecord
from openai_api.errors import ApiError
from openai_api.generation.choice import Choice, ChoicePiece, TokenEntry
from openai_api.generation.engine import Engine, Step
from openai_api.generation.merging import Quiet, merged
from openai_api.generation.metrics import Metrics
from openai_api.generation.prompt_logprobs import offsets_of, scored
from openai_api.generation.tool_formats import ToolFormat
from openai_api.generation.tool_parser import ToolCallParser, merged_calls
from routing import wire
from swarm import Notice, Routed, Sampling
from swarm.client.verify import passed
from swarm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Json = dict[str, Any]
AT_ONCE = 16  # choices of one request that are generated at the same time
# s of silence after which a stream shows that it lives. Longer than the swarm waits for room on servers that are full,
# so that an overload is still answered with a status of its own.
QUIET = 15.0


@dataclass(frozen=True, slots=True)
class ChoicePlan:
    """Choice plan: what the swarm is asked to do for one choice.

    Attributes:
        echo: the prompt's text where the choice begins with it; None where it does not.
    """

    input_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    echo: str | None = None


@dataclass(frozen=True)
class ToolOptions:
    """The functions that an answer may call.

    Attributes:
        most: calls.
        keep: special tokens that begin or end calls.
    """

    family: ToolFormat
    names: frozenset[str]
    most: int
    keep: frozenset[int]

    def reader(self) -> ToolCallParser:
        return ToolCallParser(self.family.syntax, self.names, self.most, self.family.new_id)


class StreamWriter(Protocol):
    """Stream writer: writes the events of one answer."""

    def piece(self, index: int, piece: ChoicePiece) -> Iterator[bytes]:
        """What comes with the next piece of a choice."""
        ...

    def end(self, used: int) -> Iterator[bytes]:
        """What comes last; `used`: tokens that were generated."""
        ...


class AnswerFormat(Protocol):
    """Answer format: how an API writes an answer down."""

    def body(self, answer: Answer, pieces: Sequence[ChoicePiece], used: int) -> Json:
        """An answer that is not streamed: one piece for each choice."""
        ...

    def stream(self, answer: Answer) -> StreamWriter: ...

    def failure(self, problem: ApiError) -> bytes:
        """The last event of a stream that failed after it had begun."""
        ...


@dataclass(frozen=True)
class Answer:
    """Answer while it is made.

    Attributes:
        model: the model's name in the swarm.
        created: seconds since the epoch.
        prompt_tokens: of all prompts together; a prompt that several choices share counts once.
        token_ids: whether choices show token ids beside text.
        usage: whether a stream ends with what it has used.
        checks: how many parts of each choice other servers compute anew before it counts as complete.
        notices: what has happened on the way so far; the routes are among them.
        work: what the swarm has computed for it so far.
    """

    id: str
    model: str
    created: int
    fingerprint: str
    output: AnswerFormat
    plans: tuple[ChoicePlan, ...]
    tokenizer: Tokenizer | None
    stops: tuple[str, ...]
    prompt_tokens: int
    token_ids: bool
    usage: bool
    checks: int = 0
    calling: ToolOptions | None = None
    notices: list[Notice] = field(default_factory=list, compare=False)
    work: WorkRecord = field(default_factory=WorkRecord, compare=False)


async def whole(answer: Answer, engine: Engine, metrics: Metrics) -> Json:
    """The body of an answer that is not streamed."""
    parts: list[list[ChoicePiece]] = [[] for _ in answer.plans]
    async with aclosing(_items(answer, engine, metrics)) as items:
        async for item in items:
            if not isinstance(item, Quiet) and isinstance(item[1], ChoicePiece):
                parts[item[0]].append(item[1])
    pieces = [joined(each) for each in parts]
    return answer.output.body(answer, pieces, sum(len(piece.tokens) for piece in pieces))


async def events(answer: Answer, engine: Engine, metrics: Metrics, quiet: float = QUIET) -> AsyncGenerator[bytes, None]:
    """The events of an answer that is streamed. Errors are raised; how they are sent depends on what went before.

    Notices that come before the first token wait for it: as long as nothing is sent, an error has a status of its own.
    """
    stream = answer.output.stream(answer)
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
                case (index, ChoicePiece() as piece):
                    waiting.extend(stream.piece(index, piece))
                    used += len(piece.tokens)
                    begun = True
            if begun:
                for event in waiting:
                    yield event
                waiting.clear()
    for event in stream.end(used):
        yield event


def joined(pieces: Sequence[ChoicePiece]) -> ChoicePiece:
    """All pieces of a choice as one, with whole calls."""
    return ChoicePiece(
        "".join(piece.text for piece in pieces),
        tuple(entry for piece in pieces for entry in piece.entries),
        tuple(token for piece in pieces for token in piece.tokens),
        pieces[-1].finish if pieces else "",
        pieces[-1].stop if pieces else "",
        tuple(merged_calls([part for piece in pieces for part in piece.calls])),
    )


def top_of(entry: TokenEntry) -> list[tuple[int, float]]:
    """The likeliest tokens with log-probabilities that JSON can hold."""
    return [(token, number(logprob)) for token, logprob in entry.top]


def number(logprob: float) -> float:
    """JSON knows no infinity; OpenAI writes -9999.0 for a token that is out of the question."""
    return max(logprob, -9999.0)


def sse(content: Any, event: str = "") -> bytes:
    """A server-sent event; `event`: its name, where it has one."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _comment(text: str) -> bytes:
    return f": {' '.join(text.split())}\n\n".encode()


async def _echo(answer: Answer, plan: ChoicePlan, text: str, engine: Engine) -> ChoicePiece:
    top = plan.sampling.logprobs
    if top < 0:
        return ChoicePiece(text)
    offsets = offsets_of(answer.tokenizer, plan.input_ids, len(text))
    return ChoicePiece(text, tuple(await scored(engine, answer.model, plan.input_ids, top, offsets, answer.work)))


def _items(
    answer: Answer, engine: Engine, metrics: Metrics, quiet: float = QUIET
) -> AsyncGenerator[tuple[int, ChoicePiece | Notice] | Quiet, None]:
    return merged([_pieces(answer, plan, engine, metrics) for plan in answer.plans], AT_ONCE, quiet)


async def _pieces(
    answer: Answer, plan: ChoicePlan, engine: Engine, metrics: Metrics
) -> AsyncGenerator[ChoicePiece | Notice, None]:
    """One choice, until it ends."""
    if plan.echo is not None:
        yield await _echo(answer, plan, plan.echo, engine)
    calling = answer.calling
    choice = Choice(
        answer.tokenizer,
        answer.stops,
        len(plan.echo or ""),
        calling.reader() if calling else None,
        calling.keep if calling else (),
    )
    if plan.max_new_tokens == 0:
        yield choice.end()
        return
    steps = _steps(engine, answer.model, plan)
    share = answer.work.share()
    last: ChoicePiece | None = None
    tokens: list[wire.Token] = []
    route: Sequence[wire.Hop] = ()
    with metrics.generation(answer.model) as timed:
        async with aclosing(steps):
            async for step in steps:
                if not isinstance(step, wire.Token):
                    answer.notices.append(step)
                    if isinstance(step, Routed):
                        route = step.hops
                        share.routed(route)
                        continue
                    log.info("%s: %s", answer.id, step.text)
                    yield step
                    continue
                timed.token()
                share.token(step.position)
                if answer.checks:
                    tokens.append(step)
                piece = choice.push(step)
                if piece.finish:
                    last = piece
                    break
                yield piece
    if tokens:
        notice = await _verified(answer, plan, route, tokens, engine)
        answer.notices.append(notice)
        yield notice
    yield last or choice.end()


def _steps(engine: Engine, model: str, plan: ChoicePlan) -> AsyncGenerator[Step, None]:
    # An async generator, as `Engine` says; its type cannot say so without forbidding the swarm client's.
    steps = engine.stream(model, plan.input_ids, max_new_tokens=plan.max_new_tokens, sampling=plan.sampling)
    return cast(AsyncGenerator[Step, None], steps)


async def _verified(
    answer: Answer, plan: ChoicePlan, route: Sequence[wire.Hop], tokens: Sequence[wire.Token], engine: Engine
) -> Notice:
    """Raises: SwarmError: servers disagree about the choice, or there is none to ask."""
    verdicts = []
    for _ in range(answer.checks):
        verdict = await engine.verify(answer.model, route, plan.input_ids, tokens, plan.sampling)
        verdict.demand()
        verdicts.append(verdict)
    return Notice(passed(verdicts))
