"""A connection to one directory, under one's own key, which is enrolled where need be. Belongs to one thread.

It connects as itself first, because who has enrolled before is let in whatever has become of the join token. Refused,
it connects with the key pair whose secret the token carries, enrols its own key, and connects as itself again. After a
loss the `Dialer` keeps trying.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import zmq

from routing import wire
from routing.addresses import MOST
from routing.errors import DirectoryError
from routing.links import Connected, Context, Dialer, LinkEvent, LossReason, Lost, Received
from routing.security import DirectoryAddress, Identity

log = logging.getLogger(__name__)

RETRY = 5.0  # s until a directory that has said no is asked again


class EnrolmentDenied(NamedTuple):
    """The directory said no, or is another one. It is tried again after `RETRY` seconds, because that may change."""

    error: DirectoryError


class Enrolment:
    """Enrolment of a peer at one directory, under way.

    Args:
        poller: the caller's; sockets are registered there.
        secret: of a join token; None: the directory must know us.
        enrol: what to say under the token's key, its number aside.
        expiry: why the token cannot be good any longer, as far as the token itself says; empty: it may be.
        timeout: seconds that an answer to `Enrol` is waited for.

    Attributes:
        up: whether there is a connection under our own key.
        loss: why there is none, as far as it is known.
    """

    def __init__(
        self,
        context: Context,
        poller: zmq.Poller,
        site: DirectoryAddress,
        secret: bytes | None,
        identity: Identity,
        enrol: wire.Enrol,
        timeout: float,
        clock: Callable[[], float],
        expiry: Callable[[], str] = str,
    ) -> None:
        self._site = site
        self._enrol = enrol
        self._timeout = timeout
        self._clock = clock
        self._expiry = expiry
        self._own = Dialer(context, identity, poller, clock)
        self._enrolling = None if secret is None else Dialer(context, Identity.from_secret(secret), poller, clock)
        self._requests = itertools.count(1)
        self._enrol_until: float | None = None
        self._has_enrolled = False
        self._dial_at: float | None = None
        self._impostors = 0
        self.up = False
        self.loss: LossReason | None = None
        self._dial(self._own)

    @property
    def where(self) -> str:
        """The directory's addresses, for people."""
        return " or ".join(self._site.addresses)

    def trouble(self) -> str:
        """Why there is no answer yet, as far as it is known. May be called from any thread."""
        match self.loss:
            case "unreachable":
                return (
                    f"no directory answers at {self.where}: is swarm-directory running there, and is its port open in "
                    "the firewall?"
                )
            case "refused":
                return _impostor(self.where)
            case _:
                return f"the directory at {self.where} does not answer"

    def move(self, addresses: tuple[str, ...]) -> None:
        """Try these addresses first from now on; a connection that is there stays."""
        together = tuple(dict.fromkeys((*addresses, *self._site.addresses)))[:MOST]
        if not self.up and not set(addresses) <= set(self._site.addresses):
            self._site = self._site._replace(addresses=together)
            self._dial(self._own)

    def send(self, message: wire.Message) -> bool:
        """Queue a message under our own key; False: there is no connection, or its queue is full."""
        return self.up and self._own.send(self._site.key, message)

    def collect(self) -> Iterator[Connected | Lost | Received | EnrolmentDenied]:
        """What has happened under our own key, without waiting. `Lost` comes with each attempt that fails."""
        for event in self._own.collect():
            yield from self._on_own(event)
        for event in self._enrolling.collect() if self._enrolling is not None else ():
            yield from self._on_enrolling(event)
        now = self._clock()
        if self._dial_at is not None and now >= self._dial_at:
            self._dial(self._own)
        if self._enrol_until is not None and now >= self._enrol_until:
            yield self.deny(f"the directory at {self.where} does not answer")

    def deny(self, message: str, code: str = "") -> EnrolmentDenied:
        """Hang up, and try again after `RETRY` seconds."""
        self._hang_up()
        self.up = self._has_enrolled = False
        self._impostors = 0
        self._dial_at = self._clock() + RETRY
        return EnrolmentDenied(DirectoryError(message, code))

    def close(self) -> None:
        self._own.close()
        if self._enrolling is not None:
            self._enrolling.close()

    def _on_own(self, event: LinkEvent) -> Iterator[Connected | Lost | Received | EnrolmentDenied]:
        match event:
            case Connected():
                self.up, self._has_enrolled = True, False
                self.loss, self._impostors = None, 0
                yield event
            case Lost(_, "refused", impostor=False) if self._has_enrolled:
                yield self._lost(event)
                yield self.deny(f"the directory at {self.where} refuses the key that it has just enrolled")
            case Lost(_, "refused", impostor=False) if self._enrolling is None:
                yield self._lost(event)
                yield self.deny(f"the directory at {self.where} does not know this one")
            case Lost(_, "refused", impostor=False):
                yield self._lost(event)
                self.loss = None  # so far this is how every newcomer begins
                self._dial(self._enrolling)
            case Lost():
                yield from self._on_loss(event)
            case Received():
                yield event

    def _on_enrolling(self, event: LinkEvent) -> Iterator[Lost | EnrolmentDenied]:
        assert self._enrolling is not None
        match event:
            case Connected():
                self.loss, self._impostors = None, 0
                enrol = wire.Enrol(
                    next(self._requests), self._enrol.key, self._enrol.name, self._enrol.role, self._enrol.addresses
                )
                self._enrolling.send(self._site.key, enrol)
                self._enrol_until = self._clock() + self._timeout
            case Lost(_, "refused", impostor=False):
                yield self.deny(
                    self._expiry()
                    or "the directory refuses this join token: it is wrong, has expired or was revoked; get a new one"
                )
            case Lost():
                self._enrol_until = None
                yield from self._on_loss(event)
            case Received(_, wire.Done()):
                log.info("enrolled at the directory at %s", self.where)
                self._has_enrolled = True
                self._dial(self._own)
            case Received(_, wire.Refused(retry_after=float() as wait)):  # too many at once
                self._hang_up()
                self._dial_at = self._clock() + wait
            case Received(_, wire.Refused() as refused):
                yield self.deny(f"the directory does not let this machine in: {refused.reason}", refused.code)

    def _lost(self, event: Lost) -> Lost:
        self.up = False
        self.loss = event.reason
        return event

    def _on_loss(self, event: Lost) -> Iterator[Lost | EnrolmentDenied]:
        yield self._lost(event)
        # Twice, because a directory that stops while we connect looks the same.
        self._impostors = self._impostors + 1 if event.impostor else 0
        if self._impostors >= 2 * len(self._site.addresses):
            yield self.deny(_impostor(self.where))

    def _dial(self, dialer: Dialer | None) -> None:
        assert dialer is not None
        self._dial_at = None
        self._hang_up(but=dialer)
        dialer.dial(self._site.key, self._site.addresses)

    def _hang_up(self, but: Dialer | None = None) -> None:
        self._enrol_until = None
        for dialer in (self._own, self._enrolling):
            if dialer is not None and dialer is not but:
                dialer.hang_up(self._site.key)


def _impostor(where: str) -> str:
    return (
        f"what answers at {where} is not the directory of this join token: it is another one, or another program; "
        "get a new token"
    )
