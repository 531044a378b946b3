"""Probe of the directories: what they answer to the keys of this machine.

It changes nothing there: no key is enrolled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import zmq

from routing import wire
from routing.links import Connected, Context, Dialer, LinkEvent, Lost, Received
from routing.security import DirectoryAddress, Identity, JoinToken
from routing.view import Mirror, View
from swarm.cli.doctor.checks.membership import DirectoryAnswer, MembershipStatus

ANSWER_TIMEOUT = 6.0  # s for one directory to answer one key

_DialOutcome = Literal["connected", "refused", "impostor", "unreachable"]


class _Connection:
    """One attempt to get into one directory with one key."""

    def __init__(self, dialer: Dialer, poller: zmq.Poller, site: DirectoryAddress) -> None:
        self._dialer = dialer
        self._poller = poller
        self._site = site
        self._until = time.monotonic() + ANSWER_TIMEOUT
        dialer.dial(site.key, site.addresses)

    def outcome(self) -> _DialOutcome:
        """The outcome of dialling, with all addresses of the directory tried."""
        failures = impostors = 0
        for event in self._events():
            match event:
                case Connected():
                    return "connected"
                case Lost(_, "refused", impostor=False):
                    return "refused"
                case Lost(_, _, impostor):
                    failures, impostors = failures + 1, impostors + impostor
            if failures >= 2 * len(self._site.addresses):  # twice: a directory that starts or stops looks so, too
                break
        return "impostor" if impostors else "unreachable"

    def ask(self, message: wire.Message) -> Iterator[wire.AnyMessage]:
        """What it answers, until nothing comes any longer."""
        self._dialer.send(self._site.key, message)
        for event in self._events():
            if isinstance(event, Received):
                yield event.message

    def _events(self) -> Iterator[LinkEvent]:
        while time.monotonic() < self._until:
            self._poller.poll(50)
            yield from self._dialer.collect()


@contextmanager
def _connection(context: Context, site: DirectoryAddress, identity: Identity) -> Iterator[_Connection]:
    poller = zmq.Poller()
    dialer = Dialer(context, identity, poller)
    try:
        yield _Connection(dialer, poller, site)
    finally:
        dialer.close()


def ask_directories(
    token: JoinToken, identities: Mapping[str, Identity], now: Callable[[], float] = time.time
) -> list[list[DirectoryAnswer]]:
    """The answers of each directory of the token, to each identity; without one, to the token alone."""
    context: Context = zmq.Context()
    try:
        return [
            _ask_directory(context, token, site, identities or {"": Identity.create()}) for site in token.directories
        ]
    finally:
        context.destroy(linger=0)


def _ask_directory(
    context: Context, token: JoinToken, site: DirectoryAddress, identities: Mapping[str, Identity]
) -> list[DirectoryAnswer]:
    where, answers = " or ".join(site.addresses), []
    for name, identity in identities.items():
        status, dates = _membership_status(context, token, site, identity)
        answers.append(DirectoryAnswer(where, name, status, dates))
        if status in ("unreachable", "impostor"):
            break
    return answers


def _membership_status(
    context: Context, token: JoinToken, site: DirectoryAddress, identity: Identity
) -> tuple[MembershipStatus, tuple[float, ...]]:
    with _connection(context, site, identity) as connection:
        result = connection.outcome()
        if result == "connected":
            return "member", _dates(_view(connection))
    if result != "refused":
        return result, ()
    with _connection(context, site, Identity.from_secret(token.secret)) as connection:
        result = connection.outcome()
        if result == "refused":
            return "wrong token", ()
        if result != "connected":
            return result, ()
        # A directory without an address is refused whatever the token is for, so this enrols nothing; but of a key
        # that was expelled, it is that which the directory says.
        for message in connection.ask(wire.Enrol(1, identity.public, "doctor", "directory")):
            if isinstance(message, wire.Refused):
                if message.code == wire.RefusalCode.EXPELLED:
                    return "expelled", ()
                return ("wrong token" if message.code == wire.RefusalCode.NOT_A_MEMBER else "newcomer"), ()
    return "unreachable", ()


def _view(connection: _Connection) -> View:
    mirror = Mirror()
    mirror.watch(1)
    for message in connection.ask(wire.Watch(1)):
        mirror.receive(message)
        if mirror.complete:
            break
    return mirror.view


def _dates(view: View) -> tuple[float, ...]:
    """When something last happened that the directory has written down, by its own clock or another directory's."""
    dates = [member.enrolled for member in view.members.values()]
    dates += [site.updated for site in view.directories.values()]
    return (max(dates),) if dates else ()
