"""Server: the loop of one thread that polls its sockets, takes what is pending from all sessions as one batch, runs the
stage and pushes the result to the next hop. libzmq's threads do the I/O and the heartbeats while it computes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from backends import BackendError, Stage
from backends.stage import Array
from routing import wire
from routing.codes import FailureCode, RefusalCode
from routing.links import Connected, Dialer, Listener, Lost, Received
from routing.security import short_id
from swarm.grammar import ConstraintError, GrammarCompiler
from swarm.sampling import sample_token
from swarm.server.activation_cache import ActivationCache
from swarm.server.admission import Admission, SessionRefused
from swarm.server.model_files import ModelFiles
from swarm.server.next_hops import COUNTED, NextHops
from swarm.server.polling import AdaptivePoller
from swarm.server.rate_limits import RATE, MessageRates
from swarm.server.scheduler import Scheduler, Work, pack
from swarm.server.sessions import EXPIRED_AFTER, ServerSession, ServerStatus, SessionTable
from swarm.server.validation import validate, work_of

log = logging.getLogger(__name__)

BATCH_TOKENS, POLL = 512, 0.2  # tokens of a batch at most; s
OUTPUTS = 512 << 20  # bytes of its own outputs that a server keeps, to feed a newcomer that takes the next hop's place
MESSAGES = 256  # answered between two batches, so that talking keeps no server from computing
DROPPED = 5000  # messages of peers that say too much, read and dropped between two batches
HOUSEKEEPING = 1.0  # s


class Server:
    """Server: serves a stage to the sessions of a swarm. While it drains it takes no new ones.

    Args:
        key: the server's public key.
        model: the model's name in the swarm.
        folder: where the model's tokenizer and configuration can be read for clients that have none.
        listener, dialer: the sockets, which stay the caller's.
        expelled: whether a key has lost its place in the swarm; its sessions end.
        outputs: bytes for the outputs that it keeps.
        record_useless: told of each message of a peer that says too much.
    """

    def __init__(
        self,
        stage: Stage,
        listener: Listener,
        dialer: Dialer,
        *,
        key: str,
        model: str,
        folder: Path,
        kv_tokens: int,
        expelled: Callable[[str], bool] = lambda key: False,
        outputs: int = OUTPUTS,
        record_useless: Callable[[str], None] = lambda peer: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._listener = listener
        self._dialer = dialer
        self._key = key
        self._files = ModelFiles(model, folder)
        self._expelled = expelled
        self._clock = clock
        admission = Admission(key, model, stage.span, stage.model.blocks, kv_tokens, stage.model.context_length)
        self._sessions = SessionTable(admission, GrammarCompiler(folder).prepare)
        self._scheduler = Scheduler(BATCH_TOKENS, stage.batched)
        self._cache = ActivationCache(outputs)
        self._next_hops = NextHops(dialer, clock)
        self.is_draining = False
        self._is_idle = True  # nothing that is pending can be computed before something comes in
        self._rates = MessageRates(clock)
        self._record_useless = record_useless
        self._housekeeping_at = clock()
        self.pushed_messages = 0  # to other hops, activations and tokens

    def run(self, poller: AdaptivePoller, done: Callable[[], bool], seconds: float = math.inf) -> None:
        """Serve until `done()`, at most so many seconds.

        Args:
            poller: watches the sockets of the listener and the dialer.
        """
        limit = self._clock() + seconds
        while not done() and self._clock() < limit:
            poller.wait(POLL if self._is_idle else 0)
            self.turn()

    def status(self) -> ServerStatus:
        """What the swarm is told of it."""
        return self._sessions.status(self._clock(), self.is_draining)

    def begin_drain(self) -> None:
        """From now on take no new session, and ask those that are here to go."""
        self.is_draining = True
        for session in self._sessions.all():
            self._listener.send(session.client_route, wire.Leaving(session.id, session.epoch))

    def cancel_drain(self) -> None:
        """Take new sessions again."""
        self.is_draining = False

    def dismiss(self) -> None:
        """Give up the sessions that are here, and tell their clients."""
        for session in self._sessions.all():
            self._fail(session, FailureCode.LEAVING, "the server is shutting down")

    def turn(self) -> None:
        """Read what has come, within a limit, then compute one batch."""
        self._read()
        for event in self._dialer.collect():
            self._on_link(event)
        for session in self._sessions.all():
            self._resend(session)
        if works := self._next_batch():
            self._compute(works)
        self._is_idle = self._scheduler.all_held(self._is_blocked)
        if self._clock() >= self._housekeeping_at:
            self._housekeeping_at = self._clock() + HOUSEKEEPING
            self._housekeeping()

    def _read(self) -> None:
        answered = dropped = 0
        while answered < MESSAGES and dropped < DROPPED and (received := self._listener.receive()) is not None:
            expected = self._sessions.is_expected(received.message, received.peer)
            if not expected and (wait := self._rates.wait(received.peer, received.message)):
                self._refuse_too_many(received, wait)
                dropped += 1
            else:
                self._on_message(received)
                answered += 1

    def _on_message(self, received: Received) -> None:
        match received.message:
            case wire.Forward() as message:
                size = received.array.nbytes if received.array is not None else 0
                if not self._accept_work(message, received.array, received.peer, received.route):
                    self._credit(received.route, size)
            case wire.Open() as message:
                self._open(message, received)
            case wire.Close(session_id):
                session = self._sessions.get(session_id)
                if session is not None and session.may_close(received.peer):
                    self._close_session(session_id)
            case wire.Probe(session_id, epoch):
                self._answer_probe(session_id, epoch, received)
            case wire.Ping(request):
                self._listener.send(received.route, wire.Pong(request))
            case wire.ListFiles() | wire.ReadFile() as message:
                self._listener.send(received.route, *self._files.answer(message))
            case other:
                log.warning("%s sent a %s, which is not for servers", short_id(received.peer), type(other).__name__)

    def _refuse_too_many(self, received: Received, wait: float) -> None:
        log.warning("%s exceeds the limit of %.0f messages a second", short_id(received.peer), RATE)
        self._record_useless(received.peer)
        if isinstance(received.message, wire.Open | wire.ListFiles | wire.ReadFile):
            text = f"you ask more than {RATE:.0f} times a second, which is the limit: ask again in {wait:.1f} s"
            self._refuse(received, SessionRefused(RefusalCode.TOO_MANY, text, wait))

    def _refuse(self, received: Received, refusal: SessionRefused) -> None:
        message = received.message
        session, epoch = (message.session, message.epoch) if isinstance(message, wire.Open) else ("", 0)
        request, wait = getattr(message, "request", 0), refusal.retry_after
        refused = wire.Refused(refusal.code, refusal.reason, session, epoch, request, retry_after=wait)
        self._listener.send(received.route, refused)

    def _open(self, message: wire.Open, received: Received) -> None:
        try:
            session = self._admit(message, received)
        except SessionRefused as refusal:
            self._refuse(received, refusal)
            return
        held = self._cache.start(session.id, session.num_accepted_tokens)
        self._listener.send(received.route, wire.Opened(session.id, session.epoch, session.num_accepted_tokens, held))
        if self.is_draining:
            self._listener.send(received.route, wire.Leaving(session.id, session.epoch))

    def _admit(self, message: wire.Open, received: Received) -> ServerSession:
        """Raises: SessionRefused: the session cannot be taken."""
        before = self._sessions.get(message.session)
        if self.is_draining and before is None:
            raise SessionRefused(RefusalCode.LEAVING, "the server is shutting down")
        session, evicted = self._sessions.open(message, received.peer, received.route, self._clock())
        for other in evicted:
            self._fail(other, FailureCode.EVICTED, "the session was idle and its room was needed")
        self._forget_work(session.id)
        if before is not None and before.span != session.span:
            # What it has cached belongs to other blocks.
            self._stage.free(session.id)
            self._cache.drop(session.id)
        self._truncate(session, session.num_accepted_tokens)
        session.num_accepted_tokens = session.num_computed_tokens
        following = session.next_hop or session.route[0]
        if following.peer != self._key and not self._next_hops.dial(following):
            self._close_session(session.id)
            raise SessionRefused(RefusalCode.BAD_ROUTE, "the next hop cannot be dialled")
        return session

    def _answer_probe(self, session_id: str, epoch: int, received: Received) -> None:
        session = self._sessions.get(session_id)
        if session is None or session.owner != received.peer or session.epoch < epoch or session.failed:
            failed = wire.Failed(session_id, epoch, FailureCode.GAP, "the session does not run here")
            self._listener.send(received.route, failed)
        elif session.epoch == epoch:
            session.client_route = received.route
            alive = wire.Alive(session_id, epoch, session.num_accepted_tokens, session.num_computed_tokens)
            self._listener.send(received.route, alive)

    def _accept_work(self, message: wire.Forward, array: Array | None, sender: str, route: bytes) -> bool:
        """Whether the work waits to be computed now; its sender is given credit when it does not wait any longer."""
        session = self._sessions.get(message.session)
        if session is None or not session.may_forward(sender):
            log.debug(
                "dropped work for session %s from %s: the session does not run here for it",
                message.session[:8],
                short_id(sender),
            )
            return False
        if message.epoch != session.epoch or session.failed:
            return False
        if sender == session.owner and route:
            session.client_route, session.disconnected_at = route, None
        session.last_active = self._clock()
        if problem := validate(session, message, array, self._stage.model):
            self._fail(session, FailureCode.BAD_INPUT, problem)
            return False
        assert array is not None
        inputs, position = array, message.position
        if not message.starts and position < session.num_accepted_tokens:
            inputs = inputs[
                session.num_accepted_tokens - position :
            ]  # what was replayed for the sake of the hop before
            position = session.num_accepted_tokens
            if not len(inputs):
                return False
        if position > session.num_accepted_tokens or (message.starts and not session.starts_match(message)):
            self._fail(session, FailureCode.GAP, f"work for position {position} came at {session.num_accepted_tokens}")
            return False
        if self._scheduler.pending(session.id) + len(inputs) > session.max_length:
            self._fail(
                session, FailureCode.BAD_INPUT, f"more work waits than the session's {session.max_length} tokens"
            )
            return False
        session.num_accepted_tokens = position + len(inputs)
        owed_credit = route if sender != session.owner else b""
        self._scheduler.add(work_of(session, message, position, inputs, owed_credit, array.nbytes))
        return True

    def _credit(self, route: bytes, size: int) -> None:
        """Tell the hop before that so many bytes wait here no longer; decode steps are too small to be counted."""
        if route and size >= COUNTED:
            self._listener.send(route, wire.Credit(size))

    def _on_link(self, event: Received | Connected | Lost) -> None:
        match event:
            case Received(peer, wire.Failed() | wire.Refused() as message):
                log.warning("%s says: %s", short_id(peer), message.reason)
            case Received(peer, wire.Credit(size)):
                self._next_hops.credited(peer, size)
            case Connected() | Lost():
                if self._next_hops.noticed(event):
                    self._lost_hop(event.peer)

    def _lost_hop(self, peer: str) -> None:
        """What was under way to that hop is gone; only the clients can start again from it."""
        for session in self._sessions.all():
            following = session.next_hop or session.route[0]
            if following.peer == peer and not session.failed:
                self._fail(
                    session,
                    FailureCode.LOST_HOP,
                    f"the connection to hop {following.start}:{following.end} broke",
                    peer,
                )

    def _next_batch(self) -> list[Work]:
        works = []
        for work in self._scheduler.take(self._is_blocked):
            self._credit(work.sender, work.size)
            session = self._sessions.get(work.session)
            if session is None or session.epoch != work.epoch or session.failed:
                continue
            if work.starts:
                self._truncate(session, work.position)
            if session.num_computed_tokens != work.position:
                self._fail(
                    session,
                    FailureCode.GAP,
                    f"the KV cache ends at {session.num_computed_tokens}, not at {work.position}",
                )
                continue
            if work.starts and not self._start(session, work):
                continue
            works.append(work)
        return works

    def _is_blocked(self, work: Work) -> bool:
        """Whether the next hop has to take something in first, or a grammar has to be compiled."""
        session = self._sessions.get(work.session)
        if session is None or session.next_hop is None:
            return session is not None and session.is_preparing
        return session.resend is not None or (work.length > 1 and not self._next_hops.has_room(session.next_hop.peer))

    def _start(self, session: ServerSession, work: Work) -> bool:
        """Note what the next hop wants, and push from what is kept. False: the session failed, or waits for that."""
        if session.next_hop is None:
            return True
        session.starts, session.push_from = work.starts, work.starts[session.hop + 1]
        if session.push_from >= work.position:
            return True
        if self._cache.start(session.id, work.position) > session.push_from:
            self._fail(
                session,
                FailureCode.GAP,
                f"the outputs from position {session.push_from} on are not kept any longer",
            )
            return False
        session.resend = (session.push_from, work.position)
        self._resend(session)
        if session.resend is not None:
            self._scheduler.put_back(replace(work, starts=(), sender=b"", size=0))
        return session.resend is None

    def _resend(self, session: ServerSession) -> None:
        """Push what is kept, as far as the next hop takes it."""
        following = session.next_hop
        while session.resend is not None and following is not None and self._next_hops.has_room(following.peer):
            start, end = session.resend
            parts = self._cache.parts(session.id, start, end, BATCH_TOKENS)
            try:
                position, rows = next(parts)
            except KeyError:
                self._fail(session, FailureCode.GAP, f"the outputs from position {start} on are not kept any longer")
                return
            at = position + len(rows)
            session.resend = (at, end) if at < end else None
            message = wire.Forward(session.id, session.epoch, position, starts=session.starts, last=False)
            session.starts = ()
            self._push(session, following, message, rows)

    def _truncate(self, session: ServerSession, length: int) -> None:
        if length >= session.num_computed_tokens:
            return
        self._cache.truncate(session.id, length)
        try:
            self._stage.truncate(session.id, length)
            session.num_computed_tokens = length
        except BackendError:
            self._stage.free(session.id)
            session.num_computed_tokens = 0

    def _compute(self, works: list[Work]) -> None:
        started = self._clock()
        try:
            outputs = self._stage.forward(pack(works))
        except (BackendError, MemoryError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if len(works) > 1:  # find the one that cannot be computed, spare the others
                for work in works:
                    self._compute([work])
            else:
                self._fail_work(works[0], error)
            return
        self._scheduler.pace(sum(work.length for work in works), self._clock() - started)
        tail = works[0].span.end == self._stage.model.blocks
        at = 0
        for work in works:
            rows = work.outputs if tail else work.length
            self._hand_on(work, outputs[at : at + rows], tail)
            at += rows

    def _fail_work(self, work: Work, error: Exception) -> None:
        log.exception("a batch failed: %s", work.session[:8])
        if (session := self._sessions.get(work.session)) is not None:
            code = FailureCode.MEMORY if isinstance(error, MemoryError) else FailureCode.COMPUTE
            self._fail(session, code, f"{type(error).__name__}: {error}")

    def _hand_on(self, work: Work, result: Array, tail: bool) -> None:
        """Give what was computed to the next hop, or at the tail to the client."""
        session = self._sessions.get(work.session)
        if session is None or session.epoch != work.epoch:
            return
        session.num_computed_tokens = work.position + work.length
        if not tail:
            self._cache.add(session.id, work.position, result)
        if session.failed:
            return
        if not tail:
            self._push_activations(session, work, result)
        elif session.generation is not None:
            if len(result):
                self._emit_token(session, session.generation, session.num_computed_tokens, result[-1])
        elif len(result) or work.last:
            position = session.num_computed_tokens - len(result)
            self._to_client(session, wire.Result(session.id, session.epoch, position, work.last), result)

    def _push_activations(self, session: ServerSession, work: Work, hidden: Array) -> None:
        following = session.next_hop
        assert following is not None
        position = max(work.position, session.push_from)
        hidden = hidden[position - work.position :]
        if not len(hidden):
            return
        outputs = min(work.outputs, len(hidden))
        message = wire.Forward(session.id, session.epoch, position, outputs, work.output, session.starts, work.last)
        session.starts = ()
        self._push(session, following, message, hidden)

    def _emit_token(self, session: ServerSession, generation: wire.Generation, position: int, logits: Array) -> None:
        """Pick the token of `position`, show it to the client, and start the next turn at the head."""
        try:
            grammar = session.constraint.result() if session.constraint else None
            pick, finish = sample_token(generation, position, logits, session.history, grammar)
        except (ArithmeticError, LookupError, ValueError) as error:  # logits that are no numbers, for one
            code = FailureCode.BAD_INPUT if isinstance(error, ConstraintError) else FailureCode.COMPUTE
            self._fail(session, code, f"no token could be picked: {error}")
            return
        if not finish:
            message = wire.Forward(session.id, session.epoch, position, outputs=1)
            self._push(session, session.route[0], message, np.array([pick.token], np.int32))
        token = wire.Token(session.id, session.epoch, position, pick.token, finish, pick.logprob, pick.top)
        self._to_client(session, token)

    def _push(self, session: ServerSession, hop: wire.Hop, message: wire.Forward, array: Array) -> None:
        if hop.peer == self._key:
            self._accept_work(message, array, self._key, b"")
            return
        if not self._next_hops.send(hop, message, array):
            self._fail(session, FailureCode.LOST_HOP, f"hop {hop.start}:{hop.end} takes no more messages", hop.peer)
            return
        self.pushed_messages += 1

    def _to_client(self, session: ServerSession, message: wire.Message, array: Array | None = None) -> None:
        if not self._listener.send(session.client_route, message, array):
            self._client_gone(session)

    def _client_gone(self, session: ServerSession) -> None:
        log.info("the client of session %s is gone", session.id[:8])
        self._close_session(session.id)
        for hop in session.route:
            if hop.peer != self._key and self._next_hops.dial(hop):
                self._next_hops.send(hop, wire.Close(session.id))

    def _look_after_clients(self, now: float) -> None:
        """ZeroMQ says that a connection is gone only to who sends: send what every client ignores.

        What no client waits for is not computed; what is cached waits a while for the client to come back.
        """
        for client, sessions in self._sessions.by_client_route().items():
            if self._listener.send(client, wire.Pong(0)):
                continue
            for session in sessions:
                if self.is_draining or self._scheduler.pending(session.id):
                    self._client_gone(session)
                elif session.disconnected_at is None:
                    session.disconnected_at = now

    def _fail(self, session: ServerSession, code: FailureCode, reason: str, peer: str = "") -> None:
        """End the epoch. Where nothing is wrong with what is cached here, it stays for the next one."""
        log.info("session %s: %s", session.id[:8], reason)
        if code in (FailureCode.GAP, FailureCode.LOST_HOP):
            session.failed, session.resend = True, None
            self._forget_work(session.id)
            session.num_accepted_tokens = session.num_computed_tokens
        else:
            self._close_session(session.id)
        self._listener.send(session.client_route, wire.Failed(session.id, session.epoch, code, reason[:4096], peer))

    def _close_session(self, session_id: str) -> None:
        self._sessions.close(session_id)
        self._forget_work(session_id)
        self._cache.drop(session_id)
        self._stage.free(session_id)

    def _forget_work(self, session_id: str) -> None:
        for work in self._scheduler.drop(session_id):
            self._credit(work.sender, work.size)

    def _housekeeping(self) -> None:
        now = self._clock()
        self._look_after_clients(now)
        for session in self._sessions.expired(now):
            self._fail(session, FailureCode.EVICTED, f"nothing was heard of the session for {EXPIRED_AFTER:.0f} s")
        for session in [session for session in self._sessions.all() if self._expelled(session.owner)]:
            self._close_session(session.id)
        for peer in self._next_hops.unreachable():
            self._lost_hop(peer)
        self._next_hops.keep_only({(session.next_hop or session.route[0]).peer for session in self._sessions.all()})
