"""The server's loop: one thread that polls its sockets, takes what is pending from all sessions as one batch, runs the
stage and pushes the result to the next hop. libzmq's threads do the I/O and the heartbeats while it computes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from backends import BackendError, Stage
from backends.stage import Array
from routing import wire
from routing.links import Connected, Dialer, Listener, Lost, Received
from routing.security import short_id
from swarm.grammar import ConstraintError, GrammarCompiler
from swarm.server.activation_cache import ActivationCache
from swarm.server.model_files import ModelFiles
from swarm.server.next_hops import COUNTED, NextHops
from swarm.server.polling import AdaptivePoller
from swarm.server.rate_limits import MessageRates
from swarm.server.scheduler import Scheduler, Work, pack
from swarm.server.sessions import ServerSession, SessionRefused, SessionTable

log = logging.getLogger(__name__)

FailureCode = Literal["bad_input", "compute", "evicted", "gap", "leaving", "lost_hop", "memory"]

BATCH_TOKENS, POLL = 512, 0.2  # tokens of a batch at most; s
OUTPUTS = 512 << 20  # bytes of its own outputs that a server keeps, to feed a newcomer that takes the next hop's place
MESSAGES = 256  # answered between two batches, so that nobody keeps the server from computing by talking
DROPPED = 5000  # messages of those who say too much, read and dropped between two batches
HOUSEKEEPING = 1.0  # s


class Server:
    """Serves a stage to the sessions of a swarm. While it is `leaving` it takes no new ones.

    Args:
        key: the server's public key.
        model: the model's name in the swarm.
        folder: where the model's tokenizer and configuration can be read for clients that have none.
        listener, dialer: the sockets, which stay the caller's.
        report: told about once a second what the server has free: `report(kv_free, sessions)`.
        expelled: whether a key has lost its place in the swarm; its sessions end.
        outputs: bytes for the outputs that it keeps.
        useless: told of each message of a peer that says too much.
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
        report: Callable[[int, int], None],
        expelled: Callable[[str], bool] = lambda key: False,
        outputs: int = OUTPUTS,
        useless: Callable[[str], None] = lambda peer: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._listener = listener
        self._dialer = dialer
        self._key = key
        self._files = ModelFiles(model, folder)
        self._report = report
        self._expelled = expelled
        self._clock = clock
        prepare = GrammarCompiler(folder).prepare
        self._seats = SessionTable(
            key, model, stage.span, stage.model.blocks, kv_tokens, stage.model.context_length, prepare
        )
        self._scheduler = Scheduler(BATCH_TOKENS, stage.batched)
        self._outputs = ActivationCache(outputs)
        self._neighbours = NextHops(dialer, clock)
        self.leaving = False
        self._idle = True  # nothing that is pending can be computed before something comes in
        self._messages = MessageRates(clock)
        self._useless = useless
        self._tidy_at = clock()
        self.pushed = 0  # messages sent to other hops, activations and tokens

    def run(self, vigil: AdaptivePoller, stop: threading.Event) -> None:
        """Serve until `stop` is set. `vigil` watches the sockets of both."""
        while not stop.is_set():
            vigil.wait(POLL if self._idle else 0)
            self.turn()

    def drain(self, vigil: AdaptivePoller, patience: float) -> None:
        """Let the sessions move to other servers, or end. What is left after `patience` seconds fails."""
        limit = self._clock() + patience
        self.leave()
        self._report(self._seats.free, len(self._seats))
        while self.sessions and self._clock() < limit:
            vigil.wait(POLL if self._idle else 0)
            self.turn()
        self.dismiss()

    @property
    def sessions(self) -> int:
        """How many are here."""
        return len(self._seats)

    @property
    def free_tokens(self) -> int:
        """Room in the KV cache that no session has reserved."""
        return self._seats.free

    def dismiss(self) -> None:
        """Give up the sessions that are here, and tell their clients."""
        for seat in self._seats.all():
            self._fail(seat, "leaving", "the server is shutting down")

    def leave(self) -> None:
        """From now on take no new session, and ask those that are here to go."""
        self.leaving = True
        for seat in self._seats.all():
            self._listener.send(seat.client, wire.Leaving(seat.session, seat.epoch))

    def turn(self) -> None:
        """Read what has come, within a limit, then compute one batch."""
        self._read()
        for event in self._dialer.collect():
            self._on_link(event)
        for seat in self._seats.all():
            self._resend(seat)
        if works := self._take():
            self._compute(works)
        self._idle = self._scheduler.all_held(self._is_held)
        if self._clock() >= self._tidy_at:
            self._tidy_at = self._clock() + HOUSEKEEPING
            self._tidy()

    def _read(self) -> None:
        answered = dropped = 0
        while answered < MESSAGES and dropped < DROPPED and (received := self._listener.receive()) is not None:
            owed = self._seats.owed(received.message, received.peer)
            if not owed and (wait := self._messages.wait(received.peer, received.message)):
                self._refuse_too_many(received, wait)
                dropped += 1
            else:
                self._on_message(received)
                answered += 1

    # --- messages ------------------------------------------------------------------------------------------------

    def _on_message(self, received: Received) -> None:
        match received.message:
            case wire.Forward() as message:
                size = received.array.nbytes if received.array is not None else 0
                if not self._forward(message, received.array, received.peer, received.route):
                    self._credit(received.route, size)
            case wire.Open() as message:
                self._open(message, received)
            case wire.Close(session):
                seat = self._seats.get(session)
                if seat is not None and seat.may_close(received.peer):
                    self._leave(session)
            case wire.Probe(session, epoch):
                self._probe(session, epoch, received)
            case wire.Ping(request):
                self._listener.send(received.route, wire.Pong(request))
            case wire.ListFiles() | wire.ReadFile() as message:
                self._listener.send(received.route, *self._files.answer(message))
            case other:
                log.warning("%s sent a %s, which is not for servers", short_id(received.peer), type(other).__name__)

    def _refuse_too_many(self, received: Received, wait: float) -> None:
        log.warning("%s says too much", short_id(received.peer))
        self._useless(received.peer)
        if isinstance(message := received.message, wire.Open | wire.ListFiles | wire.ReadFile):
            session, epoch = (message.session, message.epoch) if isinstance(message, wire.Open) else ("", 0)
            request, reason = getattr(message, "request", 0), "you ask too often"
            refused = wire.Refused("too_many", reason, session, epoch, request, retry_after=wait)
            self._listener.send(received.route, refused)

    def _open(self, message: wire.Open, received: Received) -> None:
        try:
            seat = self._seat(message, received)
        except SessionRefused as refusal:
            code, reason, wait = refusal.code, refusal.reason, refusal.retry_after
            refused = wire.Refused(code, reason, message.session, message.epoch, retry_after=wait)
            self._listener.send(received.route, refused)
            return
        held = self._outputs.start(seat.session, seat.accepted)
        self._listener.send(received.route, wire.Opened(seat.session, seat.epoch, seat.accepted, held))
        if self.leaving:
            self._listener.send(received.route, wire.Leaving(seat.session, seat.epoch))

    def _seat(self, message: wire.Open, received: Received) -> ServerSession:
        """Raises: SessionRefused: the session cannot be taken."""
        before = self._seats.get(message.session)
        if self.leaving and before is None:
            raise SessionRefused("leaving", "the server is shutting down")
        seat, evicted = self._seats.open(message, received.peer, received.route, self._clock())
        for other in evicted:
            self._fail(other, "evicted", "the session was idle and its room was needed")
        self._forget_work(seat.session)
        if before is not None and before.span != seat.span:
            # What it has cached belongs to other blocks.
            self._stage.free(seat.session)
            self._outputs.drop(seat.session)
        self._truncate(seat, seat.accepted)
        seat.accepted = seat.computed
        following = seat.next_hop or seat.route[0]
        if following.peer != self._key and not self._neighbours.dial(following):
            self._leave(seat.session)
            raise SessionRefused("bad_route", "the next hop cannot be dialled")
        return seat

    def _probe(self, session: str, epoch: int, received: Received) -> None:
        seat = self._seats.get(session)
        if seat is None or seat.owner != received.peer or seat.epoch < epoch or seat.failed:
            self._listener.send(received.route, wire.Failed(session, epoch, "gap", "the session does not run here"))
        elif seat.epoch == epoch:
            seat.client = received.route
            self._listener.send(received.route, wire.Alive(session, epoch, seat.accepted, seat.computed))

    def _forward(self, message: wire.Forward, array: Array | None, sender: str, route: bytes) -> bool:
        """Whether the work waits to be computed now; its sender is given credit when it does not wait any longer."""
        seat = self._seats.get(message.session)
        if seat is None or not seat.may_forward(sender):
            log.debug(
                "dropped work for session %s from %s: not seated here for it", message.session[:8], short_id(sender)
            )
            return False
        if message.epoch != seat.epoch or seat.failed:
            return False
        if sender == seat.owner and route:
            seat.client, seat.left = route, None
        seat.used = self._clock()
        if problem := seat.problem(message, array, self._stage.model):
            self._fail(seat, "bad_input", problem)
            return False
        assert array is not None
        inputs, position = array, message.position
        if not message.starts and position < seat.accepted:
            inputs = inputs[seat.accepted - position :]  # what was replayed for the sake of the hop before
            position = seat.accepted
            if not len(inputs):
                return False
        if position > seat.accepted or (message.starts and not seat.fits(message)):
            self._fail(seat, "gap", f"work for position {position} came at {seat.accepted}")
            return False
        if self._scheduler.pending(seat.session) + len(inputs) > seat.max_length:
            self._fail(seat, "bad_input", f"more work waits than the session's {seat.max_length} tokens")
            return False
        seat.accepted = position + len(inputs)
        self._scheduler.add(
            Work(
                seat.session,
                seat.epoch,
                position,
                inputs,
                seat.span,
                min(message.outputs, len(inputs)),
                "logits" if seat.generation else message.output,
                message.starts,
                message.last,
                route if sender != seat.owner else b"",
                array.nbytes,
            )
        )
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
                self._neighbours.credited(peer, size)
            case Received():
                pass
            case Connected() | Lost():
                if self._neighbours.noticed(event):
                    self._lost_hop(event.peer)

    def _lost_hop(self, peer: str) -> None:
        """What was under way to that hop is gone; only the clients can start again from it."""
        for seat in self._seats.all():
            following = seat.next_hop or seat.route[0]
            if following.peer == peer and not seat.failed:
                self._fail(seat, "lost_hop", f"the connection to hop {following.start}:{following.end} broke", peer)

    # --- computing -----------------------------------------------------------------------------------------------

    def _take(self) -> list[Work]:
        works = []
        for work in self._scheduler.take(self._is_held):
            self._credit(work.sender, work.size)
            seat = self._seats.get(work.session)
            if seat is None or seat.epoch != work.epoch or seat.failed:
                continue
            if work.starts:
                self._truncate(seat, work.position)
            if seat.computed != work.position:
                self._fail(seat, "gap", f"the KV cache ends at {seat.computed}, not at {work.position}")
                continue
            if work.starts and not self._start(seat, work):
                continue
            works.append(work)
        return works

    def _is_held(self, work: Work) -> bool:
        """Whether the next hop has to take something in first, or a grammar has to be compiled."""
        seat = self._seats.get(work.session)
        if seat is None or seat.next_hop is None:
            return seat is not None and seat.is_preparing
        return seat.resend is not None or (work.length > 1 and not self._neighbours.has_room(seat.next_hop.peer))

    def _start(self, seat: ServerSession, work: Work) -> bool:
        """Note what the next hop wants, and push from what is kept. False: the session failed, or waits for that."""
        if seat.next_hop is None:
            return True
        seat.starts, seat.pushed = work.starts, work.starts[seat.hop + 1]
        if seat.pushed >= work.position:
            return True
        if self._outputs.start(seat.session, work.position) > seat.pushed:
            self._fail(seat, "gap", f"the outputs from position {seat.pushed} on are not kept any longer")
            return False
        seat.resend = (seat.pushed, work.position)
        self._resend(seat)
        if seat.resend is not None:
            self._scheduler.put_back(replace(work, starts=(), sender=b"", size=0))
        return seat.resend is None

    def _resend(self, seat: ServerSession) -> None:
        """Push what is kept, as far as the next hop takes it."""
        following = seat.next_hop
        while seat.resend is not None and following is not None and self._neighbours.has_room(following.peer):
            start, end = seat.resend
            parts = self._outputs.parts(seat.session, start, end, BATCH_TOKENS)
            try:
                position, rows = next(parts)
            except KeyError:
                self._fail(seat, "gap", f"the outputs from position {start} on are not kept any longer")
                return
            at = position + len(rows)
            seat.resend = (at, end) if at < end else None
            message = wire.Forward(seat.session, seat.epoch, position, starts=seat.starts, last=False)
            seat.starts = ()
            self._push(seat, following, message, rows)

    def _truncate(self, seat: ServerSession, length: int) -> None:
        if length >= seat.computed:
            return
        self._outputs.truncate(seat.session, length)
        try:
            self._stage.truncate(seat.session, length)
            seat.computed = length
        except BackendError:
            self._stage.free(seat.session)
            seat.computed = 0

    def _compute(self, works: list[Work]) -> None:
        started = self._clock()
        try:
            outputs = self._stage.forward(pack(works))
        except (BackendError, MemoryError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if len(works) > 1:  # find the one that cannot be computed, spare the others
                for work in works:
                    self._compute([work])
                return
            seat = self._seats.get(works[0].session)
            log.exception("a batch failed: %s", works[0].session[:8])
            if seat is not None:
                self._fail(
                    seat, "memory" if isinstance(error, MemoryError) else "compute", f"{type(error).__name__}: {error}"
                )
            return
        self._scheduler.pace(sum(work.length for work in works), self._clock() - started)
        tail = works[0].span.end == self._stage.model.blocks
        at = 0
        for work in works:
            rows = work.outputs if tail else work.length
            result = outputs[at : at + rows]
            at += rows
            seat = self._seats.get(work.session)
            if seat is None or seat.epoch != work.epoch:
                continue
            seat.computed = work.position + work.length
            if not tail:
                self._outputs.add(seat.session, work.position, result)
            if seat.failed:
                continue
            if not tail:
                self._push_activations(seat, work, result)
            elif seat.generation is not None:
                if len(result):
                    self._close_ring(seat, seat.generation, seat.computed, result[-1])
            elif len(result) or work.last:
                answer = wire.Result(seat.session, seat.epoch, seat.computed - rows, work.last)
                self._to_client(seat, answer, result)

    def _push_activations(self, seat: ServerSession, work: Work, hidden: Array) -> None:
        following = seat.next_hop
        assert following is not None
        position = max(work.position, seat.pushed)
        hidden = hidden[position - work.position :]
        if not len(hidden):
            return
        outputs = min(work.outputs, len(hidden))
        message = wire.Forward(seat.session, seat.epoch, position, outputs, work.output, seat.starts, work.last)
        seat.starts = ()
        self._push(seat, following, message, hidden)

    def _close_ring(self, seat: ServerSession, generation: wire.Generation, position: int, logits: Array) -> None:
        """Pick the token of `position`, show it to the client, and start the next turn at the head."""
        try:
            token = seat.pick(generation, position, logits)
        except (ArithmeticError, LookupError, ValueError) as error:  # logits that are no numbers, for one
            code: FailureCode = "bad_input" if isinstance(error, ConstraintError) else "compute"
            self._fail(seat, code, f"no token could be picked: {error}")
            return
        if not token.finish:
            message = wire.Forward(seat.session, seat.epoch, position, outputs=1)
            self._push(seat, seat.route[0], message, np.array([token.token], np.int32))
        self._to_client(seat, token)

    def _push(self, seat: ServerSession, hop: wire.Hop, message: wire.Forward, array: Array) -> None:
        if hop.peer == self._key:
            self._forward(message, array, self._key, b"")
            return
        if not self._neighbours.send(hop, message, array):
            self._fail(seat, "lost_hop", f"hop {hop.start}:{hop.end} takes no more messages", hop.peer)
            return
        self.pushed += 1

    # --- clients -------------------------------------------------------------------------------------------------
    def _to_client(self, seat: ServerSession, message: wire.Message, array: Array | None = None) -> None:
        if not self._listener.send(seat.client, message, array):
            self._client_gone(seat)

    def _client_gone(self, seat: ServerSession) -> None:
        log.info("the client of session %s is gone", seat.session[:8])
        self._leave(seat.session)
        for hop in seat.route:
            if hop.peer != self._key and self._neighbours.dial(hop):
                self._neighbours.send(hop, wire.Close(seat.session))

    def _look_after_clients(self, now: float) -> None:
        """ZeroMQ says that a connection is gone only to who sends: send what every client ignores.

        What nobody waits for is not computed; what is cached waits a while for the client to come back.
        """
        silent: dict[bytes, list[ServerSession]] = {}
        for seat in self._seats.all():
            silent.setdefault(seat.client, []).append(seat)
        for client, seats in silent.items():
            if self._listener.send(client, wire.Pong(0)):
                continue
            for seat in seats:
                if self.leaving or self._scheduler.pending(seat.session):
                    self._client_gone(seat)
                elif seat.left is None:
                    seat.left = now

    def _fail(self, seat: ServerSession, code: FailureCode, reason: str, peer: str = "") -> None:
        """End the epoch. Where nothing is wrong with what is cached here, it stays for the next one."""
        log.info("session %s: %s", seat.session[:8], reason)
        if code in ("gap", "lost_hop"):
            seat.failed, seat.resend = True, None
            self._forget_work(seat.session)
            seat.accepted = seat.computed
        else:
            self._leave(seat.session)
        self._listener.send(seat.client, wire.Failed(seat.session, seat.epoch, code, reason[:4096], peer))

    def _leave(self, session: str) -> None:
        self._seats.close(session)
        self._forget_work(session)
        self._outputs.drop(session)
        self._stage.free(session)

    def _forget_work(self, session: str) -> None:
        for work in self._scheduler.drop(session):
            self._credit(work.sender, work.size)

    def _tidy(self) -> None:
        now = self._clock()
        self._look_after_clients(now)
        for seat in self._seats.abandoned(now):
            self._fail(seat, "evicted", "nothing was heard of the session for too long")
        for seat in [seat for seat in self._seats.all() if self._expelled(seat.owner)]:
            self._leave(seat.session)
        for peer in self._neighbours.unreachable():
            self._lost_hop(peer)
        self._neighbours.keep_only({(seat.next_hop or seat.route[0]).peer for seat in self._seats.all()})
        self._report(self._seats.offer(now), len(self._seats))
