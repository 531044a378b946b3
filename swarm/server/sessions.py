"""The sessions that a server hosts, and who gets in: pure bookkeeping with injected time.

A `ServerSession` is a session's place on one server: how much of its sequence has been taken in, under which epoch, and
who may speak for it. `SessionTable` keeps the KV budget: a session reserves `max_length` tokens when it is opened and
keeps them until it is closed. A seat that nobody has used for a while gives way when the room is needed, because its
client can replay the session from the token ids that it keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from backends import ModelInfo, Span
from backends.stage import Array
from routing import wire
from routing.addresses import is_dialable
from swarm.grammar import Constraint
from swarm.sampling import looks_back, pick
from swarm.server.rate_limits import MAX_SESSIONS, WaitingOwners, giving_way, holdings, share_of

BUSY_RETRY = 1.0  # s, the hint given with a refusal for want of room
ABANDONED_AFTER = 3600.0  # s without a message until a seat is given up even with room to spare
LEFT_AFTER = 15.0  # s until the same for a client whose connection is gone: it may come back for what is cached


class SessionRefused(Exception):
    """A session that is not taken."""

    def __init__(self, code: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.retry_after = retry_after


@dataclass
class ServerSession:
    """
    Attributes:
        owner: public key of the client.
        client: ROUTER route along which the client was last heard.
        accepted: tokens of the sequence that were taken in, computed or not; the next message starts here.
        computed: tokens in the KV cache.
        history: the sequence as far as the tail of a ring must look back at it.
        pushed: the next hop needs outputs from this position on.
        constraint: what the answer's grammar allows; not done while the grammar is compiled.
        starts: to be sent along with the next push.
        resend: outputs of this range are pushed again before anything else.
        failed: nothing more is computed in this epoch; the cache waits for the next one.
        opened: when the session came.
        left: when the client's connection was found gone; None: it is there.
    """

    session: str
    owner: str
    client: bytes
    epoch: int
    route: tuple[wire.Hop, ...]
    hop: int
    max_length: int
    generation: wire.Generation | None
    used: float
    constraint: Future[Constraint] | None = None
    accepted: int = 0
    computed: int = 0
    history: list[int] = field(default_factory=list)
    pushed: int = 0
    starts: tuple[int, ...] = ()
    resend: tuple[int, int] | None = None
    failed: bool = False
    opened: float = 0.0
    left: float | None = None

    @property
    def span(self) -> Span:
        return Span(self.route[self.hop].start, self.route[self.hop].end)

    @property
    def is_preparing(self) -> bool:
        """Whether the grammar of the answer is still being compiled."""
        return self.constraint is not None and not self.constraint.done()

    @property
    def next_hop(self) -> wire.Hop | None:
        """The server that computes after this one; None at the tail."""
        return self.route[self.hop + 1] if self.hop + 1 < len(self.route) else None

    def may_forward(self, sender: str) -> bool:
        """Work comes from the hop before; at the head from the client, and from the tail that closes the ring."""
        if self.hop > 0:
            return sender == self.route[self.hop - 1].peer
        return sender in (self.owner, self.route[-1].peer)

    def problem(self, message: wire.Forward, array: Array | None, model: ModelInfo) -> str:
        """Why this cannot be computed here; empty: it can."""
        head = self.span.start == 0
        if array is None or array.ndim != (1 if head else 2) or not len(array):
            return "no token ids" if head else "no hidden states"
        if head and array.dtype.kind != "i":
            return f"token ids of {array.dtype}"
        if head and not (array.min() >= 0 and array.max() < model.vocab_size):
            return f"a token id outside the vocabulary of {model.vocab_size}"
        if not head and array.dtype.kind not in "fV":  # bfloat16 is no kind that NumPy knows
            return f"hidden states of {array.dtype}"
        if not head and array.shape[1] != model.hidden_size:
            return f"hidden states {array.shape[1]} wide, not {model.hidden_size}"
        if message.position + len(array) > self.max_length:
            return f"{message.position + len(array)} tokens, more than the session's {self.max_length}"
        return ""

    def pick(self, generation: wire.Generation, position: int, logits: Array) -> wire.Token:
        """The token of `position`, from `[vocab]` logits.

        Raises:
            ConstraintError: the answer's grammar is none, or cannot be followed any further.
        """
        sampling = generation.sampling
        constraint = self.constraint.result() if self.constraint else None
        allowed = constraint.allowed(len(logits)) if constraint else None
        chosen = pick(logits, sampling, position, self.history, generation.prompt_length, allowed)
        if looks_back(sampling):
            self.history.append(chosen.token)
        finish: Literal["", "stop", "length"] = ""
        if chosen.token in sampling.stop_ids or (constraint and constraint.ends(chosen.token)):
            finish = "stop"
        elif position + 1 >= generation.end:
            finish = "length"
        elif constraint:
            constraint.take(chosen.token)
        return wire.Token(self.session, self.epoch, position, chosen.token, finish, chosen.logprob, chosen.top)

    def fits(self, message: wire.Forward) -> bool:
        """Whether the starts of all hops are ones that this hop can go by."""
        return len(message.starts) == len(self.route) and message.starts[self.hop] == message.position

    def may_close(self, sender: str) -> bool:
        return sender == self.owner or any(hop.peer == sender for hop in self.route)


class SessionTable:
    """
    Args:
        key: the server's own public key.
        model, span, blocks: what it serves: the model's name, its blocks, and how many the whole model has.
        capacity: tokens that its KV cache may hold in all sessions together.
        context_length: the longest sequence of the model; 0: unbounded.
        prepare: begins to compile the grammar of a generation that has one.
    """

    def __init__(
        self,
        key: str,
        model: str,
        span: Span,
        blocks: int,
        capacity: int,
        context_length: int,
        prepare: Callable[[wire.Generation | None], Future[Constraint] | None] = lambda generation: None,
    ) -> None:
        self._key = key
        self._model = model
        self._span = span
        self._blocks = blocks
        self._capacity = capacity
        self._context_length = context_length
        self._seats: dict[str, ServerSession] = {}
        self._prepare = prepare
        self._waiting = WaitingOwners()

    def __len__(self) -> int:
        return len(self._seats)

    def all(self) -> list[ServerSession]:
        return list(self._seats.values())

    def get(self, session: str) -> ServerSession | None:
        return self._seats.get(session)

    def owed(self, message: wire.AnyMessage, sender: str) -> bool:
        """Whether it is work that a session waits for, which is bounded by the session's length."""
        if not isinstance(message, wire.Forward) or (seat := self._seats.get(message.session)) is None:
            return False
        new = bool(message.starts) or message.position >= seat.accepted
        return new and message.epoch == seat.epoch and seat.may_forward(sender)

    @property
    def reserved(self) -> int:
        return sum(seat.max_length for seat in self._seats.values())

    @property
    def free(self) -> int:
        return self._capacity - self.reserved

    def offer(self, now: float) -> int:
        """Tokens that a newcomer could have: what is free, and what would give way to it."""
        owner, room = "", self.free
        for seat in giving_way(self._seats.values(), self._capacity, owner, 0, now):
            room += seat.max_length
        return room

    def open(
        self, message: wire.Open, sender: str, client: bytes, now: float
    ) -> tuple[ServerSession, list[ServerSession]]:
        """Seat a session, or go on with one that sits here already under a newer epoch.

        Returns:
            The seat, with `accepted` at the position that is kept, and the idle seats that gave way to it.

        Raises:
            SessionRefused: the message is not for this server, not by the session's owner, or there is no room.
        """
        self._check(message)
        known = self._seats.get(message.session)
        if known is not None and known.owner != sender:
            raise SessionRefused("not_yours", "this session belongs to somebody else")
        if known is not None and message.epoch <= known.epoch:
            raise SessionRefused("old_epoch", f"the session is on epoch {known.epoch} already")
        moved = known is not None and known.span != _span_of(message)
        need = message.max_length - (known.max_length if known else 0)
        gone = self._make_room(need, sender, now, keep=message.session)
        generation = message.generation
        if known is not None and known.constraint is not None:
            known.constraint.cancel()
        seat = ServerSession(
            session=message.session,
            owner=sender,
            client=client,
            epoch=message.epoch,
            route=message.route,
            hop=message.hop,
            max_length=message.max_length,
            generation=generation,
            used=now,
            constraint=self._prepare(generation),
            accepted=0 if known is None or moved else min(known.computed, message.position),
            computed=0 if known is None or moved else known.computed,
            history=list(generation.history) if generation else [],
            opened=now if known is None else known.opened,
        )
        self._seats[message.session] = seat
        return seat, gone

    def close(self, session: str) -> None:
        seat = self._seats.pop(session, None)
        if seat is not None and seat.constraint is not None:
            seat.constraint.cancel()

    def abandoned(self, now: float) -> list[ServerSession]:
        """Seats whose time is over."""
        return [
            seat
            for seat in self._seats.values()
            if now - seat.used > ABANDONED_AFTER or (seat.left is not None and now - seat.left > LEFT_AFTER)
        ]

    def _check(self, message: wire.Open) -> None:
        if message.model != self._model:
            raise SessionRefused("unknown_model", f"this server serves {self._model!r}, not {message.model!r}")
        if message.hop >= len(message.route) or message.route[message.hop].peer != self._key:
            raise SessionRefused("bad_route", "the route does not name this server at that place")
        span = _span_of(message)
        if not self._span.start <= span.start < span.end <= self._span.end:
            raise SessionRefused("bad_route", f"this server serves blocks {self._span}, not {span}")
        if sum(hop.peer == self._key for hop in message.route) > 1:
            raise SessionRefused("bad_route", "the route comes by this server twice")
        at = 0
        for hop in message.route:
            if hop.start != at or hop.end <= hop.start:
                raise SessionRefused("bad_route", f"the route does not go on at block {at}")
            at = hop.end
            if not all(map(is_dialable, hop.addresses)):
                raise SessionRefused("bad_route", f"the hop {hop.start}:{hop.end} has an address that nobody can dial")
        if at != self._blocks:
            raise SessionRefused("bad_route", f"the route ends at block {at} of {self._blocks}")
        if self._context_length and message.max_length > self._context_length:
            raise SessionRefused(
                "too_long", f"{message.max_length} tokens are more than the model's context of {self._context_length}"
            )
        if message.max_length > self._capacity:
            raise SessionRefused(
                "too_long",
                f"{message.max_length} tokens are more than this server's whole KV cache of {self._capacity}",
            )
        if message.generation is not None and message.generation.end > message.max_length:
            raise SessionRefused("too_long", "the generation would end beyond the session's max_length")

    def _make_room(self, need: int, owner: str, now: float, keep: str) -> list[ServerSession]:
        """Close seats until `need` tokens are free (see `swarm.server.rate_limits`); nobody gives way where that is not
        enough.
        """
        sessions = sum(seat.owner == owner and seat.session != keep for seat in self._seats.values())
        if sessions >= MAX_SESSIONS:
            raise SessionRefused("too_many", f"you have {sessions} sessions here, which is the limit", BUSY_RETRY)
        holds, waiting = holdings(self._seats.values()), self._waiting.owners(now) - {owner}
        within = holds[owner] + need <= share_of(holds, self._capacity, {owner, *waiting})
        if need > 0 and waiting and not within:
            raise SessionRefused(
                "too_many", "others wait for room, and you hold more than your share of it", BUSY_RETRY
            )
        gone: list[ServerSession] = []
        room = self.free
        for seat in giving_way(self._seats.values(), self._capacity, owner, need, now, keep):
            if room >= need:
                break
            gone.append(seat)
            room += seat.max_length
        if room < need:
            if within:
                self._waiting.refused(owner, now)
            raise SessionRefused(
                "busy",
                f"no room for {need} more tokens: {self.reserved} of {self._capacity} are reserved by "
                f"{len(self._seats)} sessions",
                BUSY_RETRY,
            )
        self._waiting.admitted(owner)
        for seat in gone:
            self.close(seat.session)
        return gone


def _span_of(message: wire.Open) -> Span:
    hop = message.route[message.hop]
    return Span(hop.start, hop.end)
