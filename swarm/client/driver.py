"""The client's background thread: it owns the sockets and carries out what the session machines decide.

Everything public may be called from any thread. The thread runs a poll loop of its own, so the caller's event loop (or
its absence, or Windows' Proactor) does not matter.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import zmq

from backends.stage import Array, Output
from routing import wire
from routing.client import DirectoryClient
from routing.links import Connected, Context, Dialer, Lost, Received
from routing.security import Identity
from routing.thread import CommandQueue
from swarm.client.actions import Action, Emit, Finished, PlanRoute, ReportFailure, ReportSuccess, Send
from swarm.client.planner import Planner, RouteRequest
from swarm.client.session import RemoteSession
from swarm.errors import BadRequest, Expelled, SessionFailed, SwarmError
from swarm.sampling import Sampling

log = logging.getLogger(__name__)

Sink = Callable[[Emit | Finished], None]
POLL = 100  # ms
HOUSEKEEPING = 5.0  # s
CALL_TIMEOUT = 20.0  # s for the answer to a request that is not part of a session


@dataclass(frozen=True)
class Link:
    """A connection to a server: the round trip in seconds when it was made (None: not measured), and by which way."""

    round_trip: float | None
    relayed: bool


class _Call:
    """A request to one server that waits for its answer."""

    def __init__(self, peer: str, deadline: float) -> None:
        self.peer = peer
        self.deadline = deadline
        self.future: Future[tuple[wire.AnyMessage, Array | None]] = Future()


class Driver:
    """Driver: runs sessions over the swarm that `directory` knows. It does not start or close the directory client. It
    does not start or close the directory client.
    """

    def __init__(
        self,
        directory: DirectoryClient,
        identity: Identity,
        *,
        patience: float = 30.0,
        ends: Callable[[], frozenset[str] | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            patience: seconds that a session waits for a server of blocks that it has lost.
            ends: tells the only servers that may see tokens; None: any.
        """
        self._patience = patience
        self._ends = ends
        self._directory = directory
        self._clock = clock
        self._context: Context = zmq.Context()
        self._poller = zmq.Poller()
        self._dialer = Dialer(self._context, identity, self._poller, clock, directory.expelled)
        self._planner = Planner()
        self._sessions: dict[str, tuple[RemoteSession, Sink | None]] = {}
        self._calls: dict[int, _Call] = {}
        self._requests = itertools.count(1)
        self._pings: dict[int, float] = {}
        self._latency: dict[str, float] = {}  # s, the last round trip to each server
        self._commands = CommandQueue(self._context, self._poller)
        self._closing = False
        self._tidy_at = 0.0
        self._thread = threading.Thread(target=self._run, name="swarm-client", daemon=True)
        self._thread.start()

    # --- from any thread ---------------------------------------------------------------------------------------------

    def open(
        self, model: str, max_length: int, through: Sequence[wire.Hop] = (), without: frozenset[str] = frozenset()
    ) -> str:
        """A new session's id. Nothing is sent until it is used.

        Args:
            through: hops that its first route is to have.
            without: servers that it never uses.
        """
        session = RemoteSession(secrets.token_hex(16), model, max_length, self._patience)
        session.through, session.without = tuple(through), without
        self._do(lambda: self._sessions.update({session.id: (session, None)}))
        return session.id

    def generate(self, session: str, ids: Sequence[int], new: int, sampling: Sampling, sink: Sink) -> None:
        """Continue `ids`; `sink` is called in the driver's thread with each item, and with `Finished` once, last."""
        self._start(session, sink, lambda s: s.generate(ids, new, sampling, self._clock()))

    def step(
        self,
        session: str,
        ids: Sequence[int],
        position: int,
        output: Output,
        sink: Sink,
        outputs: int | None = None,
    ) -> None:
        self._start(session, sink, lambda s: s.step(ids, position, output, self._clock(), outputs))

    def cancel(self, session: str) -> None:
        """Stop what the session does; its sink hears no more."""
        self._do(lambda: self._cancel(session))

    def close(self, session: str) -> None:
        """End the session and free its KV caches."""
        self._do(lambda: self._close(session))

    def state(self, session: str) -> tuple[int, tuple[wire.Hop, ...]]:
        """Epoch and route of the session; nothing of one that is closed."""
        known = self._sessions.get(session)
        return (known[0].epoch, known[0].route) if known else (0, ())

    def links(self) -> Future[dict[str, Link]]:
        """The connections to servers that are up now, by key."""
        found: Future[dict[str, Link]] = Future()

        def look() -> None:
            up = filter(self._dialer.is_up, self._dialer.peers())
            found.set_result({peer: Link(self._latency.get(peer), self._dialer.relayed(peer)) for peer in up})

        self._do(look)
        return found

    def call(
        self, server: wire.ServerInfo, request: Callable[[int], wire.Message]
    ) -> Future[tuple[wire.AnyMessage, Array | None]]:
        """Ask one server; `request` makes the message from its request number. Fails with a SwarmError."""
        waiting = _Call(server.key, self._clock() + CALL_TIMEOUT)
        self._do(lambda: self._send_call(server, request, waiting))
        return waiting.future

    def shut_down(self) -> None:
        """End every session and the thread."""
        self._do(self._prepare_to_close)
        self._thread.join()
        self._context.term()

    def _do(self, command: Callable[[], None]) -> None:
        if self._closing or not self._commands.put(command):
            raise SwarmError("the client is closed")

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing or self._commands:
            self._poller.poll(POLL)
            self._commands.run()
            for event in self._dialer.collect():
                self._on_link(event)
            now = self._clock()
            for session, _ in list(self._sessions.values()):
                self._drive(session, partial(session.tick, now))
            for request, waiting in list(self._calls.items()):
                if now >= waiting.deadline:
                    del self._calls[request]
                    waiting.future.set_exception(SessionFailed("a server did not answer in time"))
            if now >= self._tidy_at:
                self._tidy_at = now + HOUSEKEEPING
                self._hang_up()
        self._dialer.close()
        self._commands.close()

    def _hang_up(self) -> None:
        """On servers that are gone and that are not needed; the others may be wanted again."""
        needed = {waiting.peer for waiting in self._calls.values()}
        needed.update(*(session.peers for session, _ in self._sessions.values()))
        for peer in self._dialer.peers() - needed - self._directory.view.servers.keys():
            if not self._dialer.is_up(peer):
                self._dialer.hang_up(peer)

    def _start(self, session_id: str, sink: Sink, begin: Callable[[RemoteSession], list[Action]]) -> None:
        def command() -> None:
            if session_id not in self._sessions:
                sink(Finished(BadRequest("this session is closed")))
                return
            session, _ = self._sessions[session_id]
            try:
                actions = begin(session)
            except SwarmError as error:
                sink(Finished(error))
                return
            self._sessions[session_id] = session, sink
            self._carry_out(session, actions)

        self._do(command)

    def _cancel(self, session_id: str) -> None:
        if session_id in self._sessions:
            session, _ = self._sessions[session_id]
            self._sessions[session_id] = session, None
            self._carry_out(session, session.cancel(self._clock()))

    def _close(self, session_id: str) -> None:
        if session_id in self._sessions:
            session, _ = self._sessions[session_id]
            self._carry_out(session, session.close())
            self._deliver(session, Finished(SwarmError("the session was closed")))
            del self._sessions[session_id]

    def _prepare_to_close(self) -> None:
        for session in list(self._sessions):
            self._close(session)
        for waiting in self._calls.values():
            waiting.future.set_exception(SwarmError("the client was closed"))
        self._calls.clear()
        self._closing = True

    def _on_link(self, event: Received | Connected | Lost) -> None:
        match event:
            case Connected(peer):
                number = next(self._requests)
                self._pings[number] = self._clock()
                self._dialer.send(peer, wire.Ping(number))
            case Received(peer, wire.Pong(number), _):
                if (sent := self._pings.pop(number, None)) is not None:
                    self._latency[peer] = self._clock() - sent
            case Received(peer, message, array):
                if (waiting := self._calls.get(getattr(message, "request", 0))) and waiting.peer == peer:
                    del self._calls[message.request]  # type: ignore[union-attr]
                    waiting.future.set_result((message, array))
                elif (known := self._sessions.get(getattr(message, "session", ""))) is not None:
                    self._drive(known[0], partial(known[0].received, peer, message, array, self._clock()))
            case Lost(peer, reason):
                for session, _ in list(self._sessions.values()):
                    self._drive(session, partial(session.lost, peer, reason, self._clock()))
                if reason == "closed":
                    self._fail_calls(peer)

    def _drive(self, session: RemoteSession, happen: Callable[[], list[Action]]) -> None:
        """What another peer has caused: an error in it is the end of one session, not of all."""
        try:
            self._carry_out(session, happen())
        except Exception:
            log.exception("session %s failed", session.id[:8])
            self._deliver(session, Finished(SessionFailed("the client failed; its log says where")))
            self._sessions.pop(session.id, None)
            with suppress(Exception):
                self._carry_out(session, session.close())

    def _carry_out(self, session: RemoteSession, actions: list[Action]) -> None:
        queue = deque(actions)
        while queue:
            match queue.popleft():
                case Send(hop, wire.Close()) if hop.peer not in self._dialer:
                    pass
                case Send(hop, message, array):
                    self._dialer.dial(hop.peer, hop.addresses)
                    self._dialer.send(hop.peer, message, array)
                case PlanRoute(avoid, keep):
                    queue.extend(self._plan(session, avoid, keep))
                case ReportFailure(peer):
                    known = self._directory.view.servers.get(peer)
                    self._planner.report_failure(peer, known.instance if known else "", self._clock())
                case ReportSuccess(peer):
                    self._planner.report_success(peer)
                case Emit() | Finished() as item:
                    self._deliver(session, item)

    def _deliver(self, session: RemoteSession, item: Emit | Finished) -> None:
        known = self._sessions.get(session.id)
        if known is None or known[1] is None:
            return
        if isinstance(item, Finished):
            self._sessions[session.id] = session, None
        known[1](item)

    def _plan(self, session: RemoteSession, avoid: frozenset[str], keep: tuple[wire.Hop, ...]) -> list[Action]:
        now = self._clock()
        if self._directory.banished:
            return session.no_route(Expelled(), now)
        servers = self._directory.view.serving(session.model)
        request = RouteRequest(
            session.id,
            session.model,
            session.max_length,
            reserved=session.reserved_on,
            avoid=avoid,
            keep=keep,
            latency=self._round_trip,
            ends=self._ends(),
            relayed=frozenset(server.key for server in servers if self._dialer.relayed(server.key)),
        )
        try:
            return session.routed(self._planner.route(request, servers, now), now)
        except SwarmError as error:
            return session.no_route(error, now)

    def _round_trip(self, one: str | None, other: str) -> float:
        """Seconds between the client and a server; nothing is known of the way between two servers."""
        return self._latency.get(other, 0.0) if one is None else 0.0

    def _send_call(self, server: wire.ServerInfo, request: Callable[[int], wire.Message], waiting: _Call) -> None:
        number = next(self._requests)
        self._calls[number] = waiting
        self._dialer.dial(server.key, server.addresses)
        self._dialer.send(server.key, request(number))

    def _fail_calls(self, peer: str) -> None:
        for number, waiting in list(self._calls.items()):
            if waiting.peer == peer:
                del self._calls[number]
                waiting.future.set_exception(SessionFailed("the connection to a server broke"))
