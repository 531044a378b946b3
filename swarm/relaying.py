"""`swarm-router`: a router as a program."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from routing.client import DirectoryClient
from routing.relay import Limits
from routing.router import Router, allow_connections
from routing.security import JoinToken
from swarm.identities import claimed
from swarm.process import Stop, announce


def relay(join: str, bind: str, advertise: Sequence[str], name: str, stop: Stop) -> None:
    """Join the swarm and relay until `stop` is set.

    Raises:
        SwarmError, LinkError, DirectoryError, SecurityError: each with a line for the user.
    """
    token = JoinToken.parse(join)
    limits = Limits()
    allow_connections(limits)
    with ExitStack() as resources:
        name, identity = resources.enter_context(claimed("router", name))
        directory = resources.enter_context(DirectoryClient(token, identity, name))
        router = resources.enter_context(Router(bind, identity, directory.admits, advertise=advertise, limits=limits))
        directory.announce(router.entry(name))
        stop.abrupt = False
        announce(f"ready: {name} relays at {router.addresses[0]}")
        router.run(stop)
