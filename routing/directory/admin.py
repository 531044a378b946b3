"""Administers a swarm: join tokens and expulsions, at one directory, which tells the others."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import msgspec
import zmq

from routing import wire
from routing.directory.replication import roster_of
from routing.directory.roster import Roster
from routing.errors import DirectoryError
from routing.links import Context, Dialer, Lost, Received
from routing.security import AdminKey, DirectoryAddress, Identity, JoinToken, SecurityError


@dataclass(frozen=True)
class Records:
    """Records: what the directory knows. `seen`: when each key gave its last sign of life here, in seconds since the
    epoch.
    """

    roster: Roster
    seen: dict[str, float] = field(default_factory=dict)


class Administrator:
    """A connection to a directory under its admin key. Every method waits for the answer and raises DirectoryError."""

    def __init__(self, key: AdminKey, timeout: float = 10.0) -> None:
        self._key = key
        self._timeout = timeout
        self._requests = itertools.count(1)
        self._context: Context = zmq.Context()
        self._poller = zmq.Poller()
        try:
            self._dialer = Dialer(self._context, Identity.from_secret(key.secret), self._poller)
            self._dialer.dial(key.directory, key.addresses)
        except (SecurityError, zmq.ZMQError) as error:
            self._context.destroy(linger=0)
            raise DirectoryError(f"the admin key names no directory that could be dialled: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._dialer.close()
        self._context.term()

    def records(self) -> Records:
        """Members, directories, join tokens and expulsions."""
        records = Records(Roster())
        for message in self._ask(wire.Consult(0)):
            if isinstance(message, wire.RosterPart):
                records = Records(records.roster.merge(roster_of(message)), records.seen | message.seen)
        return records

    def issue(
        self, ttl: float | None = None, uses: int = 0, role: Literal["peer", "directory"] = "peer"
    ) -> tuple[JoinToken, wire.TokenRecord]:
        """A new join token, which names all the directories. Its secret is made here and not sent.

        Args:
            ttl: seconds until it expires; None: never.
            uses: how many may enrol with it; 0: any number.
            role: whether it admits peers or further directories.
        """
        identity = Identity.create()
        self._ask(wire.Issue(0, identity.public, ttl, uses, role))
        roster = self.records().roster
        sites = [DirectoryAddress(site.key, site.addresses) for site in roster.sites.values()]
        own = next(
            (s for s in sites if s.key == self._key.directory),
            DirectoryAddress(self._key.directory, self._key.addresses),
        )
        others = tuple(site for site in sites if site.key != own.key)
        enrolment = roster.enrolments[identity.public]
        return JoinToken(own.addresses, own.key, identity.secret, enrolment.expires, others), enrolment

    def revoke(self, key: str) -> None:
        """Let no peer in with this join token any longer."""
        self._ask(wire.Revoke(0, key))

    def expel(self, key: str) -> None:
        """Throw a peer, or a directory, out for good."""
        self._ask(wire.Expel(0, key))

    def _ask(self, message: wire.Consult | wire.Issue | wire.Revoke | wire.Expel) -> list[wire.AnyMessage]:
        """What comes up to the `Done`."""
        request = next(self._requests)
        where = " or ".join(self._key.addresses)
        attempts = 2 * len(self._key.addresses)
        self._dialer.send(self._key.directory, msgspec.structs.replace(message, request=request))
        answers: list[wire.AnyMessage] = []
        until = time.monotonic() + self._timeout
        while time.monotonic() < until:
            self._poller.poll(50)
            for event in self._dialer.collect():
                match event:
                    case Received(_, wire.Done(number)) if number == request:
                        return answers
                    case Received(_, wire.Refused() as refused) if refused.request == request:
                        raise DirectoryError(refused.reason, refused.code)
                    case Received(_, answer):
                        answers.append(answer)
                    case Lost(_, "refused", impostor):
                        who = "what answers there is another directory" if impostor else "it has another admin key now"
                        raise DirectoryError(f"the directory at {where} refuses this admin key: {who}")
                    case Lost(_, "unreachable"):
                        attempts -= 1
                        if attempts <= 0:
                            raise DirectoryError(f"no directory answers at {where}: is that directory running?")
                    case Lost():
                        raise DirectoryError(f"lost the directory at {where}: see with 'swarm peers' what it has done")
        raise DirectoryError(f"the directory at {where} does not answer")
