"""The server's loop: one thread that polls its sockets, takes what is pending from all sessions as one batch, runs the
stage and pushes the result to the next hop. libzmq's threads do the I/O and the heartbeats while it computes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import zmq

from backends import BackendError, Stage
from backends.stage import Array
from routing import wire
from routing.links import Connected, Dialer, Listener, Lost, Received
from swarm.limits import Messages
from swarm.sampling import looks_back, pick
from swarm.scheduler import Scheduler, Work, pack
from swarm.seats import Refusal, Seat, Seats
from swarm.tokenizer import TOKENIZER_FILES

log = logging.getLogger(__name__)

FailureCode = Literal["bad_input", "compute", "evicted", "gap", "leaving", "lost_hop", "memory"]

BATCH_TOKENS = 512
POLL = 200  # ms
MESSAGES = 256  # answered between two batches, so that nobody keeps the server from computing by talking
DROPPED = 5000  # messages of those who say too much, read and dropped between two batches
HOUSEKEEPING = 1.0  # s
LINK_GRACE = 5.0  # s until a next hop that cannot be reached fails the sessions that go there
FILE_PART = 1 << 20  # bytes


class Server:
    """Serves a stage to the sessions of a swarm.

    Args:
        key: the server's public key.
        model: the model's name in the swarm.
        folder: where the model's tokenizer and configuration can be read for clients that have none.
        listener, dialer: the sockets, which stay the caller's.
        report: told about once a second what the server has free: `report(kv_free, sessions)`.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._listener = listener
        self._dialer = dialer
        self._key = key
        self._model = model
        self._folder = folder
        self._report = report
        self._clock = clock
        self._seats = Seats(key, model, stage.span, stage.model.blocks, kv_tokens, stage.model.context_length)
        self._scheduler = Scheduler(BATCH_TOKENS, stage.batched)
        self._messages = Messages(clock)
        self._files: dict[str, Array] = {}
        self._down_since: dict[str, float] = {}
        self._tidy_at = clock()
        self.pushed = 0  # messages sent to other hops, activations and tokens

    def run(self, poller: zmq.Poller, stop: threading.Event) -> None:
        """Serve until `stop` is set; then tell every client to go elsewhere. `poller` holds the sockets of both."""
        while not stop.is_set():
            poller.poll(0 if self._scheduler else POLL)
            self.turn()
        for seat in self._seats.all():
            self._fail(seat, "leaving", "the server is shutting down")

    def turn(self) -> None:
        """Read what has come, within a limit, then compute one batch."""
        answered = dropped = 0
        while answered < MESSAGES and dropped < DROPPED and (received := self._listener.receive()) is not None:
            if not self._is_owed(received) and (wait := self._messages.wait(received.peer, received.message)):
                self._refuse_too_many(received, wait)
                dropped += 1
            else:
                self._on_message(received)
                answered += 1
        for event in self._dialer.collect():
            self._on_link(event)
        if works := self._take():
            self._compute(works)
        if self._clock() >= self._tidy_at:
            self._tidy_at = self._clock() + HOUSEKEEPING
            self._tidy()

    # --- messages ------------------------------------------------------------------------------------------------

    def _on_message(self, received: Received) -> None:
        match received.message:
            case wire.Forward() as message:
                self._forward(message, received.array, received.peer, received.route)
            case wire.Open() as message:
                self._open(message, received)
            case wire.Close(session):
                seat = self._seats.get(session)
                if seat is not None and seat.may_close(received.peer):
                    self._leave(session)
            case wire.Ping(request):
                self._listener.send(received.route, wire.Pong(request))
            case wire.ListFiles(request, model):
                self._list_files(request, model, received.route)
            case wire.ReadFile() as message:
                self._read_file(message, received.route)
            case other:
                log.warning("%s sent a %s, which is not for servers", received.peer[:8], type(other).__name__)

    def _is_owed(self, received: Received) -> bool:
        """Whether it is work that a session waits for, which is bounded by the session's length."""
        message = received.message
        if not isinstance(message, wire.Forward) or (seat := self._seats.get(message.session)) is None:
            return False
        new = message.rewind or message.position >= seat.accepted
        return new and message.epoch == seat.epoch and seat.may_forward(received.peer)

    def _refuse_too_many(self, received: Received, wait: float) -> None:
        log.warning("%s says too much", received.peer[:8])
        message = received.message
        if isinstance(message, wire.Open | wire.ListFiles | wire.ReadFile):
            session, epoch = (message.session, message.epoch) if isinstance(message, wire.Open) else ("", 0)
            reason = "you ask too often"
            refused = wire.Refused("too_many", reason, session, epoch, getattr(message, "request", 0), retry_after=wait)
            self._listener.send(received.route, refused)

    def _open(self, message: wire.Open, received: Received) -> None:
        now = self._clock()
        before = self._seats.get(message.session)
        try:
            seat, evicted = self._seats.open(message, received.peer, received.route, now)
        except Refusal as refusal:
            self._listener.send(
                received.route,
                wire.Refused(
                    refusal.code, refusal.reason, message.session, message.epoch, retry_after=refusal.retry_after
                ),
            )
            return
        for other in evicted:
            self._fail(other, "evicted", "the session was idle and its room was needed")
        self._scheduler.drop(seat.session)
        if before is not None and before.span != seat.span:
            self._stage.free(seat.session)  # what it has cached belongs to other blocks
        self._truncate(seat, seat.accepted)
        seat.accepted = seat.computed
        following = seat.next_hop or seat.route[0]
        if following.peer != self._key:
            if following.peer not in self._dialer:
                self._down_since[following.peer] = now
            if not self._dial(following):
                self._leave(seat.session)
                refused = wire.Refused("bad_route", "the next hop cannot be dialled", seat.session, seat.epoch)
                self._listener.send(received.route, refused)
                return
        self._listener.send(received.route, wire.Opened(seat.session, seat.epoch, seat.accepted))

    def _dial(self, hop: wire.Hop) -> bool:
        """Clients say who the next hop is. False: that is no key, or there are no more sockets to be had."""
        try:
            self._dialer.dial(hop.peer, hop.addresses)
        except (zmq.ZMQError, ValueError) as error:
            log.warning("cannot dial %s: %s", hop.peer[:8], error)
            return False
        return True

    def _forward(self, message: wire.Forward, array: Array | None, sender: str, client: bytes) -> None:
        seat = self._seats.get(message.session)
        if seat is None or not seat.may_forward(sender):
            log.debug("dropped work for session %s from %s: not seated here for it", message.session[:8], sender[:8])
            return
        if message.epoch != seat.epoch:
            return
        if sender == seat.owner and client:
            seat.client, seat.left = client, None
        seat.used = self._clock()
        if message.position < seat.accepted and not message.rewind:
            return  # a duplicate
        if message.position > seat.accepted:
            self._fail(seat, "gap", f"work for position {message.position} came at {seat.accepted}")
            return
        inputs = self._checked(seat, message, array)
        if inputs is None:
            return
        if self._scheduler.pending(seat.session) + len(inputs) > seat.max_length:
            self._fail(seat, "bad_input", f"more work waits than the session's {seat.max_length} tokens")
            return
        seat.accepted = message.position + len(inputs)
        self._scheduler.add(
            Work(
                seat.session,
                seat.epoch,
                message.position,
                inputs,
                seat.span,
                min(message.outputs, len(inputs)),
                "logits" if seat.generation else message.output,
                message.rewind,
                message.last,
            )
        )

    def _checked(self, seat: Seat, message: wire.Forward, array: Array | None) -> Array | None:
        """The inputs if they are what this hop can compute; otherwise the session fails."""
        info = self._stage.model
        if array is None or array.ndim != (1 if seat.span.start == 0 else 2) or not len(array):
            problem = "no token ids" if seat.span.start == 0 else "no hidden states"
        elif seat.span.start == 0 and array.dtype.kind != "i":
            problem = f"token ids of {array.dtype}"
        elif seat.span.start == 0 and not (array.min() >= 0 and array.max() < info.vocab_size):
            problem = f"a token id outside the vocabulary of {info.vocab_size}"
        elif seat.span.start > 0 and array.dtype.kind not in "fV":  # bfloat16 is no kind that NumPy knows
            problem = f"hidden states of {array.dtype}"
        elif seat.span.start > 0 and array.shape[1] != info.hidden_size:
            problem = f"hidden states {array.shape[1]} wide, not {info.hidden_size}"
        elif message.position + len(array) > seat.max_length:
            problem = f"{message.position + len(array)} tokens, more than the session's {seat.max_length}"
        else:
            return array
        self._fail(seat, "bad_input", problem)
        return None

    def _on_link(self, event: Received | Connected | Lost) -> None:
        match event:
            case Received(peer, wire.Failed() | wire.Refused() as message):
                log.warning("%s says: %s", peer[:8], message.reason)
            case Received():
                pass
            case Connected(peer):
                self._down_since.pop(peer, None)
            case Lost(peer, "closed"):
                self._down_since[peer] = self._clock()
                self._lost_hop(peer)
            case Lost(peer, _):
                self._down_since.setdefault(peer, self._clock())

    def _lost_hop(self, peer: str) -> None:
        """What was under way to that hop is gone; only the clients can start again from it."""
        for seat in self._seats.all():
            following = seat.next_hop or seat.route[0]
            if following.peer == peer:
                self._fail(seat, "lost_hop", f"the connection to hop {following.start}:{following.end} broke", peer)

    # --- computing -----------------------------------------------------------------------------------------------

    def _take(self) -> list[Work]:
        works = []
        for work in self._scheduler.take():
            seat = self._seats.get(work.session)
            if seat is None or seat.epoch != work.epoch:
                continue
            if work.rewind:
                self._truncate(seat, work.position)
            if seat.computed != work.position:
                self._fail(seat, "gap", f"the KV cache ends at {seat.computed}, not at {work.position}")
                continue
            works.append(work)
        return works

    def _truncate(self, seat: Seat, length: int) -> None:
        if length == seat.computed:
            return
        try:
            self._stage.truncate(seat.session, length)
            seat.computed = length
        except BackendError:
            self._stage.free(seat.session)
            seat.computed = 0

    def _compute(self, works: list[Work]) -> None:
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
                self._push_activations(seat, work, result)
            elif seat.generation is not None:
                if len(result):
                    self._close_ring(seat, seat.generation, seat.computed, result[-1])
            elif len(result) or work.last:
                answer = wire.Result(seat.session, seat.epoch, seat.computed - rows, work.last)
                self._to_client(seat, answer, result)

    def _push_activations(self, seat: Seat, work: Work, hidden: Array) -> None:
        following = seat.next_hop
        assert following is not None
        message = wire.Forward(
            seat.session, seat.epoch, work.position, work.outputs, work.output, work.rewind, work.last
        )
        self._push(seat, following, message, hidden)

    def _close_ring(self, seat: Seat, generation: wire.Generation, position: int, logits: Array) -> None:
        """Pick the token of `position`, show it to the client, and start the next turn at the head."""
        sampling = generation.sampling
        try:
            chosen = pick(logits, sampling, position, seat.history, generation.prompt_length)
        except (
            ArithmeticError,
            LookupError,
            ValueError,
        ) as error:  # logits that are no numbers, a history of no tokens
            self._fail(seat, "compute", f"no token could be picked: {type(error).__name__}: {error}")
            return
        if looks_back(sampling):
            seat.history.append(chosen.token)
        finish: Literal["", "stop", "length"] = ""
        if chosen.token in sampling.stop_ids:
            finish = "stop"
        elif position + 1 >= generation.end:
            finish = "length"
        if not finish:
            message = wire.Forward(seat.session, seat.epoch, position, outputs=1)
            self._push(seat, seat.route[0], message, np.array([chosen.token], np.int32))
        token = wire.Token(
            seat.session,
            seat.epoch,
            position,
            chosen.token,
            finish,
            chosen.logprob,
            chosen.top,
        )
        self._to_client(seat, token)

    def _push(self, seat: Seat, hop: wire.Hop, message: wire.Forward, array: Array) -> None:
        if hop.peer == self._key:
            self._forward(message, array, self._key, b"")
            return
        if not self._dialer.send(hop.peer, message, array):
            self._fail(seat, "lost_hop", f"hop {hop.start}:{hop.end} takes no more messages", hop.peer)
            return
        self.pushed += 1

    # --- clients -------------------------------------------------------------------------------------------------

    def _to_client(self, seat: Seat, message: wire.Message, array: Array | None = None) -> None:
        if not self._listener.send(seat.client, message, array):
            self._client_gone(seat)

    def _client_gone(self, seat: Seat) -> None:
        log.info("the client of session %s is gone", seat.session[:8])
        self._leave(seat.session)
        for hop in seat.route:
            if hop.peer != self._key and self._dial(hop):
                self._dialer.send(hop.peer, wire.Close(seat.session))

    def _look_after_clients(self, now: float) -> None:
        """ZeroMQ says that a connection is gone only to who sends: send what every client ignores.

        What nobody waits for is not computed; what is cached waits a while for the client to come back.
        """
        silent: dict[bytes, list[Seat]] = {}
        for seat in self._seats.all():
            silent.setdefault(seat.client, []).append(seat)
        for client, seats in silent.items():
            if self._listener.send(client, wire.Pong(0)):
                continue
            for seat in seats:
                if self._scheduler.pending(seat.session):
                    self._client_gone(seat)
                elif seat.left is None:
                    seat.left = now

    def _fail(self, seat: Seat, code: FailureCode, reason: str, peer: str = "") -> None:
        log.info("session %s: %s", seat.session[:8], reason)
        self._leave(seat.session)
        self._listener.send(seat.client, wire.Failed(seat.session, seat.epoch, code, reason[:4096], peer))

    def _leave(self, session: str) -> None:
        self._seats.close(session)
        self._scheduler.drop(session)
        self._stage.free(session)

    def _tidy(self) -> None:
        now = self._clock()
        self._look_after_clients(now)
        for seat in self._seats.abandoned(now):
            self._fail(seat, "evicted", "nothing was heard of the session for too long")
        for peer, since in list(self._down_since.items()):
            if now - since > LINK_GRACE:
                self._lost_hop(peer)
        for peer in self._dialer.peers() - {(seat.next_hop or seat.route[0]).peer for seat in self._seats.all()}:
            self._dialer.hang_up(peer)
            self._down_since.pop(peer, None)
        self._report(self._seats.offer(now), len(self._seats))

    def _list_files(self, request: int, model: str, route: bytes) -> None:
        if model != self._model:
            self._listener.send(route, wire.Refused("unknown_model", f"{model!r} is not served here", request=request))
            return
        files = {name: self._folder / name for name in TOKENIZER_FILES}
        sizes = {name: path.stat().st_size for name, path in files.items() if path.is_file()}
        self._listener.send(route, wire.Files(request, sizes))

    def _read_file(self, message: wire.ReadFile, route: bytes) -> None:
        if message.model != self._model or message.name not in TOKENIZER_FILES:
            refused = wire.Refused("unknown_file", f"{message.name!r} cannot be read here", request=message.request)
            self._listener.send(route, refused)
            return
        try:
            file = self._mapped(message.name)
        except (OSError, ValueError) as error:  # it is not there, or empty
            reason = f"{message.name!r} cannot be read here: {error}"
            self._listener.send(route, wire.Refused("unknown_file", reason, request=message.request))
            return
        part = file[message.offset : message.offset + FILE_PART]
        self._listener.send(route, wire.FilePart(message.request, message.offset), part)

    def _mapped(self, name: str) -> Array:
        """A file's bytes, the same memory each time: parts that a slow reader lets queue up cost nothing more."""
        if name not in self._files:
            self._files[name] = np.memmap(self._folder / name, np.uint8, "r")
        return self._files[name]
