"""A directory's connection to another one, whose roster it takes in. Belongs to the directory's thread.

Each directory asks each other once a second whether it knows something new; both also push what changes, which makes it
quick, while asking makes it sure. Nothing is taken from any peer but a directory that we have dialled by its key.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator

from routing import wire
from routing.directory.feed import parts
from routing.directory.roster import Roster
from routing.errors import DirectoryError
from routing.links import Connected, Lost, Received
from routing.membership.enrolment import Enrolment, EnrolmentDenied

log = logging.getLogger(__name__)

PAUSE = 1.0  # s between two questions
PATIENCE = 10.0  # s until a question is asked again


class DirectoryPeer:
    """Directory peer: another directory of the swarm, as this one sees it.

    Attributes:
        consulted: whether it has told us all that it knows.
        denied: why not, where it has said so; None: it has not.
    """

    def __init__(self, admission: Enrolment, clock: Callable[[], float]) -> None:
        self._admission = admission
        self._clock = clock
        self._requests = itertools.count(1)
        self._asked = 0
        self._ask_at = 0.0
        self.consulted = False
        self.denied: DirectoryError | None = None

    def step(self, digest: Callable[[], bytes], own: wire.DirectoryInfo) -> Iterator[Roster]:
        """What it says, and ask it again when that is due. `digest` is that of our own roster, `own` says who asks."""
        for event in self._admission.collect():
            match event:
                case Connected():
                    self.denied = None
                    self._ask_at = 0.0
                case EnrolmentDenied(error):
                    if self.denied is None:
                        log.warning("%s (the directory at %s)", error, self._admission.where)
                    self.denied = error
                case Received(_, wire.RosterPart() as roster):
                    yield roster_of(roster)
                case Received(_, wire.Done(request)) if request == self._asked:
                    self.consulted = True
                    self._ask_at = self._clock() + PAUSE
                case Received(_, wire.Refused(request=request) as refused) if request == self._asked:
                    self._ask_at = self._clock() + (refused.retry_after or PATIENCE)
                case Lost() | Received():
                    pass
        if self._admission.up and self._clock() >= self._ask_at:
            self._asked = next(self._requests)
            self._ask_at = self._clock() + PATIENCE
            self._admission.send(wire.Consult(self._asked, digest(), own))

    def move(self, addresses: tuple[str, ...]) -> None:
        self._admission.move(addresses)

    def trouble(self) -> str:
        """Why it has not been consulted, for people."""
        return str(self.denied) if self.denied is not None else self._admission.trouble()

    def close(self) -> None:
        self._admission.close()


def roster_of(message: wire.RosterPart) -> Roster:
    return Roster.of(message.members, message.sites, message.enrolments, message.expelled)


def messages_of(roster: Roster, request: int) -> Iterator[wire.RosterPart]:
    """The roster in messages that fit a frame; expulsions first, so that no expelled peer is let in meanwhile."""
    for expelled in parts(tuple(roster.expelled.values())):
        yield wire.RosterPart(request, expelled=expelled)
    for enrolments in parts(tuple(roster.enrolments.values())):
        yield wire.RosterPart(request, enrolments=enrolments)
    for sites in parts(tuple(roster.sites.values())):
        yield wire.RosterPart(request, sites=sites)
    for members in parts(tuple(roster.members.values())):
        yield wire.RosterPart(request, members=members)
