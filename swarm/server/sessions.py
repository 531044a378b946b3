"""Sessions of a server: what it knows of each, and the table of all. Pure bookkeeping with injected time.

A session reserves `max_length` tokens of the KV cache when it is opened and keeps them until it is closed. One that has
not been used for a while gives way when the room is needed (`swarm.server.admission`), because its client can replay it
from the token ids that it keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from backends import Span
from routing import wire
from swarm.grammar import Constraint
from swarm.server.admission import Admission, SessionRefused, span_of

EXPIRED_AFTER = 3600.0  # s without a message until a session is given up even with room to spare
DISCONNECTED_AFTER = 15.0  # s until the same where the client's connection is gone: it may come back for what is cached


@dataclass
class ServerSession:
    """Server session: how much of a sequence has been taken in, under which epoch, and which peers may speak for it.

    Attributes:
        owner: public key of the client.
        last_active: when the client was last heard.
        client_route: ROUTER route along which the client was last heard.
        num_accepted_tokens: tokens of the sequence that were taken in, computed or not; the next message starts here.
        num_computed_tokens: tokens in the KV cache.
        history: the sequence as far as the tail of a ring must look back at it.
        push_from: the next hop needs outputs from this position on.
        constraint: what the answer's grammar allows; not done while the grammar is compiled.
        starts: to be sent along with the next push.
        resend: outputs of this range are pushed again before anything else.
        failed: nothing more is computed in this epoch; the cache waits for the next one.
        opened: when the session came.
        disconnected_at: when the client's connection was found gone; None: it is there.
    """

    id: str
    owner: str
    client_route: bytes
    epoch: int
    route: tuple[wire.Hop, ...]
    hop: int
    max_length: int
    generation: wire.Generation | None
    last_active: float
    constraint: Future[Constraint] | None = None
    num_accepted_tokens: int = 0
    num_computed_tokens: int = 0
    history: list[int] = field(default_factory=list)
    push_from: int = 0
    starts: tuple[int, ...] = ()
    resend: tuple[int, int] | None = None
    failed: bool = False
    opened: float = 0.0
    disconnected_at: float | None = None

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

    def starts_match(self, message: wire.Forward) -> bool:
        """Whether the starts of all hops are ones that this hop can go by."""
        return len(message.starts) == len(self.route) and message.starts[self.hop] == message.position

    def may_close(self, sender: str) -> bool:
        return sender == self.owner or any(hop.peer == sender for hop in self.route)


@dataclass(frozen=True)
class ServerStatus:
    """Status of a server: free tokens of its KV cache, those included that would give way; its sessions."""

    available_tokens: int
    sessions: int
    is_draining: bool


class SessionTable:
    """Session table: the sessions that a server hosts, within its KV budget.

    Args:
        admission: decides which sessions get in, and at whose cost.
        compile: begins to compile the grammar of a generation that has one.
    """

    def __init__(
        self,
        admission: Admission,
        compile: Callable[[wire.Generation | None], Future[Constraint] | None] = lambda generation: None,
    ) -> None:
        self._admission = admission
        self._compile = compile
        self._sessions: dict[str, ServerSession] = {}
        # The session of an id; the dict's own method, because each step of each session looks for it several times.
        self.get: Callable[[str], ServerSession | None] = self._sessions.get

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[ServerSession]:
        return list(self._sessions.values())

    def by_client_route(self) -> dict[bytes, list[ServerSession]]:
        """The sessions along each route by which a client was last heard."""
        routes: dict[bytes, list[ServerSession]] = {}
        for session in self._sessions.values():
            routes.setdefault(session.client_route, []).append(session)
        return routes

    def is_expected(self, message: wire.AnyMessage, sender: str) -> bool:
        """Whether it is work that a session waits for, which is bounded by the session's length."""
        if not isinstance(message, wire.Forward) or (session := self._sessions.get(message.session)) is None:
            return False
        new = bool(message.starts) or message.position >= session.num_accepted_tokens
        return new and message.epoch == session.epoch and session.may_forward(sender)

    @property
    def free(self) -> int:
        """Tokens that no session has reserved."""
        return self._admission.free(self._sessions.values())

    def status(self, now: float, is_draining: bool) -> ServerStatus:
        available = self._admission.available_tokens(self._sessions.values(), now)
        return ServerStatus(max(available, 0), len(self._sessions), is_draining)

    def open(
        self, message: wire.Open, sender: str, client_route: bytes, now: float
    ) -> tuple[ServerSession, list[ServerSession]]:
        """Open a session, or go on with one that is here already under a newer epoch.

        Returns:
            The session, with `num_accepted_tokens` at the position that is kept, and the sessions that gave way to it.

        Raises:
            SessionRefused: the message is not for this server, not by the session's owner, or there is no room.
        """
        self._admission.validate(message)
        known = self._sessions.get(message.session)
        if known is not None and known.owner != sender:
            raise SessionRefused(wire.RefusalCode.NOT_YOURS, "this session belongs to another client")
        if known is not None and message.epoch <= known.epoch:
            raise SessionRefused(wire.RefusalCode.OLD_EPOCH, f"the session is on epoch {known.epoch} already")
        need = message.max_length - (known.max_length if known else 0)
        evicted = self._admission.make_room(self._sessions.values(), need, sender, now, keep=message.session)
        for session in evicted:
            self.close(session.id)
        session = self._opened(message, sender, client_route, now, known)
        self._sessions[message.session] = session
        return session, evicted

    def _opened(
        self, message: wire.Open, sender: str, client_route: bytes, now: float, known: ServerSession | None
    ) -> ServerSession:
        generation = message.generation
        if known is not None and known.constraint is not None:
            known.constraint.cancel()
        cached = 0 if known is None or known.span != span_of(message) else known.num_computed_tokens
        return ServerSession(
            id=message.session,
            owner=sender,
            client_route=client_route,
            epoch=message.epoch,
            route=message.route,
            hop=message.hop,
            max_length=message.max_length,
            generation=generation,
            last_active=now,
            constraint=self._compile(generation),
            num_accepted_tokens=min(cached, message.position),
            num_computed_tokens=cached,
            history=list(generation.history) if generation else [],
            opened=now if known is None else known.opened,
        )

    def close(self, session_id: str) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None and session.constraint is not None:
            session.constraint.cancel()

    def expired(self, now: float) -> list[ServerSession]:
        """Sessions whose time is over."""
        return [
            session
            for session in self._sessions.values()
            if now - session.last_active > EXPIRED_AFTER
            or (session.disconnected_at is not None and now - session.disconnected_at > DISCONNECTED_AFTER)
        ]
