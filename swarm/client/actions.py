"""Actions: what a session wants done; the answers of its state machine, which the driver carries out."""

from __future__ import annotations

from dataclasses import dataclass

from backends.stage import Array
from routing import wire
from swarm.errors import SwarmError


@dataclass(frozen=True)
class Send:
    """Message to be sent to a hop."""

    hop: wire.Hop
    message: wire.Message
    array: Array | None = None


@dataclass(frozen=True)
class PlanRoute:
    """Find a route for the session without the servers in `avoid`; answer with `routed` or `no_route`.

    If it can be, the hops in `keep`, which have parts of the session cached, stay as they are.
    """

    avoid: frozenset[str]
    keep: tuple[wire.Hop, ...] = ()


@dataclass(frozen=True)
class ReportFailure:
    """The peer failed; routes of other sessions should avoid it for a while too."""

    peer: str


@dataclass(frozen=True)
class ReportSuccess:
    """The peer answered as it should."""

    peer: str


@dataclass(frozen=True)
class Notice:
    """Something that the user may want to know and need not act upon, e.g. that a server was replaced."""

    text: str


@dataclass(frozen=True)
class Routed(Notice):
    """The servers that compute the session from here on; `text` says it for people."""

    hops: tuple[wire.Hop, ...]


@dataclass(frozen=True)
class StepOutput:
    """`[tokens, vocab]` float32 logits or `[tokens, hidden]` hidden states of a step."""

    array: Array


@dataclass(frozen=True)
class Emit:
    """Item for the user of the session."""

    item: wire.Token | Notice | StepOutput


@dataclass(frozen=True)
class Finished:
    """The generation or step has ended; with `error`, by failing. The session can be used again."""

    error: SwarmError | None = None


Action = Send | PlanRoute | ReportFailure | ReportSuccess | Emit | Finished
