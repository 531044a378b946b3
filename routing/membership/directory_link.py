"""A peer's standing with one directory: connected, watching, announced. Belongs to the thread that calls `step`.

After a loss, once the connection is there again, the peer watches and announces again.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from routing import wire
from routing.errors import DirectoryError
from routing.links import Connected, Lost, Received
from routing.membership.enrolment import Enrolment, EnrolmentDenied
from routing.view import Mirror, View, only_figures_differ

log = logging.getLogger(__name__)

TTL = 15.0  # s; a server is renewed three times in it
UPDATE_PAUSE = 1.0  # s between two announcements of mere figures
RECONNECTING = 0.05  # s between two looks at the connection while there is none
UNREACHABLE = 0.25  # s, where no directory answers: a connection that comes about is seen at once all the same

Answer = wire.AnyMessage
Announced = wire.ServerInfo | wire.RouterInfo
Announcement = wire.Announce | wire.AnnounceRouter
Asking = Announcement | wire.Withdraw | wire.Place


def announcement(request: int, peer: Announced) -> Announcement:
    """What a server or a router tells the directory of itself."""
    return (
        wire.Announce(request, peer, TTL)
        if isinstance(peer, wire.ServerInfo)
        else wire.AnnounceRouter(request, peer, TTL)
    )


@dataclass
class _Asked:
    message: Asking
    answer: Future[Answer]


class DirectoryLink:
    """Directory link: the standing of a peer with one directory.

    Args:
        admission: the connection, which is closed with this.
        key: the peer's own.
        timeout: seconds after which an answer of the directory is not waited for any longer.

    Attributes:
        denied: what the directory said when it said no; None: it has not, or has let the peer in since.
    """

    def __init__(self, admission: Enrolment, key: str, timeout: float, clock: Callable[[], float]) -> None:
        self._admission = admission
        self._key = key
        self._timeout = timeout
        self._clock = clock
        self._mirror = Mirror()
        self._requests = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._server: Announced | None = None  # what is announced
        self._announced = 0.0  # when it was last sent
        self._renew_at = 0.0
        self._watching = 0  # the number of the latest `Watch`
        self._watch_until: float | None = None  # when to ask for the state again
        self._may_be_known = False  # whether the directory may hold a server or a span for us
        self._away = False
        self._complaint = ""
        self.denied: DirectoryError | None = None

    @property
    def view(self) -> View:
        """The last complete one."""
        return self._mirror.view

    @property
    def is_up(self) -> bool:
        return self._admission.up

    @property
    def is_current(self) -> bool:
        """Whether the view is what the directory says now."""
        return self._admission.up and self._mirror.complete

    @property
    def is_down(self) -> bool:
        """Whether it is known that there is no connection, and why."""
        return not self._admission.up and (self._admission.loss is not None or self.denied is not None)

    @property
    def where(self) -> str:
        """The directory's addresses, for people."""
        return self._admission.where

    def move(self, addresses: tuple[str, ...]) -> None:
        """The directory says that it can be reached at these addresses, too."""
        self._admission.move(addresses)

    def trouble(self) -> str:
        """Why there is no answer yet, as far as it is known. May be called from any thread."""
        denied = self.denied
        return str(denied) if denied is not None else self._admission.trouble()

    # --- what the owner wants ----------------------------------------------------------------------------------------

    def ask(self, make: Callable[[int], Asking], answer: Future[Answer]) -> None:
        """Send a request, again after each loss of the connection, until it is answered or forgotten."""
        self._may_be_known = True
        request = next(self._requests)
        asked = self._asked[request] = _Asked(make(request), answer)
        self._admission.send(asked.message)

    def forget(self, answer: Future[Answer]) -> None:
        """No caller waits for this answer any longer."""
        self._asked = {request: asked for request, asked in self._asked.items() if asked.answer is not answer}

    def hold(self, server: Announced | None) -> None:
        """Announce this, now and whenever the directory is there; None: nothing. No answer is waited for."""
        if server is None:
            self.leave(Future())
        elif server != self._server:
            self._may_be_known = True
            self._server = server
            self._renew_at = self._clock()

    def update(self, server: wire.ServerInfo) -> None:
        """Replace what is announced; does nothing when nothing is."""
        if not isinstance(self._server, wire.ServerInfo) or server == self._server:
            return
        hurry = not only_figures_differ(self._server, server)
        self._server = server
        self._renew_at = self._clock() if hurry else min(self._renew_at, self._announced + UPDATE_PAUSE)

    def leave(self, answer: Future[Answer]) -> None:
        """Announce nothing any longer. Without a connection that is all: the lease runs out by itself."""
        self._server = None
        if self._admission.up and self._may_be_known:
            self.ask(wire.Withdraw, answer)
        else:
            answer.set_result(wire.Done(0))
        self._may_be_known = False

    # --- the thread --------------------------------------------------------------------------------------------------

    def patience(self) -> float:
        """Seconds that `step` can wait."""
        if not self._admission.up:
            return UNREACHABLE if self._admission.loss == "unreachable" else RECONNECTING
        due = [self._clock() + 1.0]
        if self._watch_until is not None:
            due.append(self._watch_until)
        if self._server is not None and not self._is_announcing():
            due.append(self._renew_at)
        return max(min(due) - self._clock(), 0.0)

    def step(self) -> None:
        """Take in what has come and do what is due."""
        for event in self._admission.collect():
            match event:
                case Connected():
                    self._on_connected()
                case Lost():
                    self._on_loss()
                case EnrolmentDenied(error):
                    self._on_denied(error)
                case Received(_, message):
                    self._on_message(message)
        now = self._clock()
        if self._admission.up and self._watch_until is not None and now >= self._watch_until:
            self._watch()
        if self._admission.up and self._server is not None and now >= self._renew_at and not self._is_announcing():
            self._announce(self._server)

    def close(self) -> None:
        self._admission.close()
        closed = DirectoryError("the connection to the directory was closed")
        for asked in self._asked.values():
            asked.answer.set_exception(closed)
        self._asked.clear()

    def _on_connected(self) -> None:
        self.denied, self._complaint = None, ""
        if self._away:
            self._away = False
            log.info("the directory at %s is back", self.where)
        self._watch()
        if self._server is not None and not self._is_announcing():
            self._announce(self._server)
        for asked in self._asked.values():
            self._admission.send(asked.message)

    def _on_loss(self) -> None:
        was_there = self._watching > 0
        self._watch_until = None
        if was_there and not self._away:
            self._away = True
            log.warning(
                "lost the directory at %s: going on with what is known, and trying to reach it again", self.where
            )

    def _on_denied(self, error: DirectoryError) -> None:
        self.denied = error
        if self._watching:
            self._complain(str(error))

    def _on_message(self, message: wire.AnyMessage) -> None:
        match self._mirror.receive(message):
            case "gap":
                log.info("missed a change of the directory at %s: asking for the state again", self.where)
                self._watch()
            case "changed" if self._mirror.complete:
                self._watch_until = None
                if self._key in self._mirror.view.expelled:
                    self._on_denied(self._admission.deny("this machine was expelled from the swarm", "expelled").error)
        request = getattr(message, "request", 0)
        asked = self._asked.pop(request, None)
        if isinstance(message, wire.Refused):
            if asked is not None:
                asked.answer.set_exception(DirectoryError(message.reason, message.code))
            elif request == self._watching:
                self._watch_until = self._clock() + (message.retry_after or self._timeout)
            else:
                self._complain(f"the directory at {self.where} refuses what this peer announces: {message.reason}")
        elif asked is not None:
            if isinstance(asked.message, Announcement):
                told = asked.message
                self._server = told.server if isinstance(told, wire.Announce) else told.router
                self._announced = self._clock()
                self._renew_at = self._announced + TTL / 3
            asked.answer.set_result(message)

    # --- sending -----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        self._watching = next(self._requests)
        self._mirror.watch(self._watching)
        self._watch_until = self._clock() + self._timeout
        self._admission.send(wire.Watch(self._watching))

    def _announce(self, server: Announced) -> None:
        self._announced = self._clock()
        self._renew_at = self._announced + TTL / 3
        self._admission.send(announcement(next(self._requests), server))

    def _is_announcing(self) -> bool:
        """Whether an announcement of the owner's is under way, which replaces the one that would be renewed."""
        return any(isinstance(asked.message, Announcement) for asked in self._asked.values())

    def _complain(self, message: str) -> None:
        """Log it, once for as long as it lasts."""
        if message != self._complaint:
            self._complaint = message
            log.warning("%s", message)
