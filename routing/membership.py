"""A peer's standing with its directory: enrolled, watching, announced. Belongs to the thread that calls `step`.

It connects as itself first, because a peer that has enrolled before is let in whatever has become of the join token.
Refused, it connects with the key pair whose secret the token carries, enrols its own key, and connects as itself again.
After a loss the `Dialer` keeps trying; once it succeeds, the peer watches and announces again.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import zmq

from routing import wire
from routing.errors import DirectoryError
from routing.links import Connected, Context, Dialer, LinkEvent, LossReason, Lost, Received
from routing.security import Identity, JoinToken
from routing.view import Mirror, View, only_figures_differ

log = logging.getLogger(__name__)

TTL = 15.0  # s; a server is renewed three times in it
UPDATE_PAUSE = 1.0  # s between two announcements of mere figures
RETRY = 5.0  # s until a directory that has said no is asked again
RECONNECTING = 0.05  # s between two looks at the dialers while there is no connection

Answer = wire.AnyMessage
Announcement = wire.Announce | wire.AnnounceRouter


def announcement(request: int, peer: wire.Server | wire.Router) -> Announcement:
    """What a server or a router tells the directory of itself."""
    return (
        wire.Announce(request, peer, TTL) if isinstance(peer, wire.Server) else wire.AnnounceRouter(request, peer, TTL)
    )


@dataclass
class _Asked:
    message: Announcement | wire.Withdraw | wire.Place
    answer: Future[Answer]


class Membership:
    """
    Args:
        poller: the caller's; sockets are registered there.
        timeout: seconds after which an answer of the directory is not waited for any longer.

    Attributes:
        joined: fails with a DirectoryError when the first view cannot be had; the owner sets it done when it has it.
    """

    def __init__(
        self,
        context: Context,
        poller: zmq.Poller,
        token: JoinToken,
        identity: Identity,
        name: str,
        timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self._token = token
        self._identity = identity
        self._name = name[:256]
        self._timeout = timeout
        self._clock = clock
        self._own = Dialer(context, identity, poller, clock)
        self._enrolling = Dialer(context, Identity.from_secret(token.secret), poller, clock)
        self._mirror = Mirror()
        self._requests = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._server: wire.Server | wire.Router | None = None  # what is announced
        self._announced = 0.0  # when it was last sent
        self._renew_at = 0.0
        self._watch_until: float | None = None  # when to ask for the state again
        self._enrol_until: float | None = None
        self._has_enrolled = False
        self._dial_at: float | None = None
        self._may_be_known = False  # whether the directory may hold a server or a span for us
        self._up = False
        self._away = False
        self._impostors = 0
        self._loss: LossReason | None = None
        self._complaint = ""
        self.joined: Future[None] = Future()
        self._dial(self._own)

    @property
    def view(self) -> View:
        return self._mirror.view

    @property
    def is_complete(self) -> bool:
        """Whether the view is what the directory says now."""
        return self._mirror.complete

    @property
    def where(self) -> str:
        """The directory's addresses, for people."""
        return " or ".join(self._token.addresses)

    def trouble(self) -> str:
        """Why there is no answer yet, as far as it is known. May be called from any thread."""
        match self._loss:
            case "unreachable":
                return (
                    f"nobody answers at {self.where}: is swarm-directory running there, and is its port open in the "
                    "firewall?"
                )
            case "refused":
                return _impostor(self.where)
            case _:
                return f"the directory at {self.where} does not answer"

    # --- what the owner wants ----------------------------------------------------------------------------------------

    def ask(self, make: Callable[[int], Announcement | wire.Withdraw | wire.Place], answer: Future[Answer]) -> None:
        """Send a request, again after each loss of the connection, until it is answered or forgotten."""
        self._may_be_known = True
        request = next(self._requests)
        asked = self._asked[request] = _Asked(make(request), answer)
        if self._up:
            self._send(asked.message)

    def forget(self, answer: Future[Answer]) -> None:
        """Nobody waits for this answer any longer."""
        self._asked = {request: asked for request, asked in self._asked.items() if asked.answer is not answer}

    def update(self, server: wire.Server) -> None:
        """Replace what is announced; does nothing when nothing is."""
        if not isinstance(self._server, wire.Server) or server == self._server:
            return
        hurry = not only_figures_differ(self._server, server)
        self._server = server
        self._renew_at = self._clock() if hurry else min(self._renew_at, self._announced + UPDATE_PAUSE)

    def leave(self, answer: Future[Answer]) -> None:
        """Announce nothing any longer. Without a connection that is all: the lease runs out by itself."""
        self._server = None
        if self._up and self._may_be_known:
            self.ask(wire.Withdraw, answer)
        else:
            answer.set_result(wire.Done(0))
        self._may_be_known = False

    # --- the thread --------------------------------------------------------------------------------------------------

    def patience(self) -> float:
        """Seconds that `step` can wait."""
        if not self._up:
            return RECONNECTING
        due = [self._clock() + 1.0]
        if self._watch_until is not None:
            due.append(self._watch_until)
        if self._server is not None and not self._is_announcing():
            due.append(self._renew_at)
        return max(min(due) - self._clock(), 0.0)

    def step(self) -> bool:
        """Take in what has come and do what is due. Returns whether the view is a new one."""
        before = self._mirror.view
        for event in self._own.collect():
            self._on_own(event)
        for event in self._enrolling.collect():
            self._on_enrolling(event)
        self._tick()
        return self._mirror.view is not before

    def close(self) -> None:
        self._own.close()
        self._enrolling.close()
        closed = DirectoryError("the connection to the directory was closed")
        for asked in self._asked.values():
            asked.answer.set_exception(closed)
        self._asked.clear()

    def _tick(self) -> None:
        now = self._clock()
        if self._dial_at is not None and now >= self._dial_at:
            self._dial(self._own)
        if self._enrol_until is not None and now >= self._enrol_until:
            self._fail(f"the directory at {self.where} does not answer")
        if self._up and self._watch_until is not None and now >= self._watch_until:
            self._watch()
        if self._up and self._server is not None and now >= self._renew_at and not self._is_announcing():
            self._announce(self._server)

    def _on_own(self, event: LinkEvent) -> None:
        match event:
            case Connected():
                self._up, self._has_enrolled = True, False
                self._loss, self._impostors, self._complaint = None, 0, ""
                if self._away:
                    self._away = False
                    log.info("the directory at %s is back", self.where)
                self._watch()
                if self._server is not None and not self._is_announcing():
                    self._announce(self._server)
                for asked in self._asked.values():
                    self._send(asked.message)
            case Lost(_, "refused", impostor=False):
                self._on_loss("refused")
                if self._has_enrolled:
                    self._fail(f"the directory at {self.where} refuses the key that it has just enrolled")
                else:
                    self._own.hang_up(self._token.directory)
                    self._dial(self._enrolling)
            case Lost(_, reason, impostor):
                self._on_loss(reason, impostor)
            case Received(_, message):
                self._on_message(message)

    def _on_enrolling(self, event: LinkEvent) -> None:
        match event:
            case Connected():
                self._loss, self._impostors = None, 0
                enrol = wire.Enrol(next(self._requests), self._identity.public, self._name)
                self._enrolling.send(self._token.directory, enrol)
                self._enrol_until = self._clock() + self._timeout
            case Lost(_, "refused", impostor=False):
                self._fail(
                    self._token.expiry(time.time())
                    or "the directory refuses this join token: it is wrong, has expired or was revoked; get a new one"
                )
            case Lost(_, reason, impostor):
                self._enrol_until = None
                self._on_loss(reason, impostor)
            case Received(_, wire.Done()):
                log.info("enrolled at the directory at %s", self.where)
                self._has_enrolled = True
                self._dial(self._own)
            case Received(_, wire.Refused() as refused):
                self._fail(f"the directory does not let this machine in: {refused.reason}", refused.code)

    def _on_loss(self, reason: LossReason, impostor: bool = False) -> None:
        self._up = False
        self._loss = reason
        self._watch_until = None
        if self.joined.done() and not self._away:
            self._away = True
            log.warning(
                "lost the directory at %s: going on with what is known, and trying to reach it again", self.where
            )
        # Twice, because a directory that stops while we connect looks the same.
        self._impostors = self._impostors + 1 if impostor else 0
        if self._impostors >= 2 * len(self._token.addresses):
            self._fail(_impostor(self.where))

    def _on_message(self, message: wire.AnyMessage) -> None:
        match self._mirror.receive(message):
            case "gap":
                log.info("missed a change of the directory at %s: asking for the state again", self.where)
                self._watch()
            case "changed" if self._watch_until is not None and self._mirror.complete:
                self._watch_until = None
        request = getattr(message, "request", 0)
        asked = self._asked.pop(request, None)
        if isinstance(message, wire.Refused):
            if asked is None:
                self._complain(f"the directory at {self.where} refuses what this peer announces: {message.reason}")
            else:
                asked.answer.set_exception(DirectoryError(message.reason, message.code))
        elif asked is not None:
            if isinstance(asked.message, Announcement):
                told = asked.message
                self._server = told.server if isinstance(told, wire.Announce) else told.router
                self._announced = self._clock()
                self._renew_at = self._announced + TTL / 3
            asked.answer.set_result(message)

    # --- sending -----------------------------------------------------------------------------------------------------

    def _dial(self, dialer: Dialer) -> None:
        self._dial_at = self._enrol_until = None
        for other in (self._own, self._enrolling):
            if other is not dialer:
                other.hang_up(self._token.directory)
        dialer.dial(self._token.directory, self._token.addresses)

    def _send(self, message: wire.Message) -> None:
        self._own.send(self._token.directory, message)

    def _watch(self) -> None:
        request = next(self._requests)
        self._mirror.watch(request)
        self._watch_until = self._clock() + self._timeout
        self._send(wire.Watch(request))

    def _announce(self, server: wire.Server | wire.Router) -> None:
        self._announced = self._clock()
        self._renew_at = self._announced + TTL / 3
        self._send(announcement(next(self._requests), server))

    def _is_announcing(self) -> bool:
        """Whether an announcement of the owner's is under way, which replaces the one that would be renewed."""
        return any(isinstance(asked.message, Announcement) for asked in self._asked.values())

    def _fail(self, message: str, code: str = "") -> None:
        """The directory said no. At the start that is the end; later it is tried again, because it may change."""
        self._own.hang_up(self._token.directory)
        self._enrolling.hang_up(self._token.directory)
        self._up = self._has_enrolled = False
        self._enrol_until = None
        self._impostors = 0
        self._dial_at = self._clock() + RETRY
        if not self.joined.done():
            self.joined.set_exception(DirectoryError(message, code))
        else:
            self._complain(message)

    def _complain(self, message: str) -> None:
        """Log it, once for as long as it lasts."""
        if message != self._complaint:
            self._complaint = message
            log.warning("%s", message)


def _impostor(where: str) -> str:
    return (
        f"what answers at {where} is not the directory of this join token: it is another one, or another program; "
        "get a new token"
    )
