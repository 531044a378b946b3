"""`swarm-router`: a router as a program."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

from routing.client import DirectoryClient
from routing.links import split_address
from routing.relay.rules import RelayLimits
from routing.relay.server import RelayServer, allow_connections
from routing.security import JoinToken
from swarm.server.rate_limits import FloodGuard
from swarm.system import firewall
from swarm.system.identities import claimed
from swarm.system.process import StopSignal, announce

RATE, BURST = 50.0, 500.0  # messages per second and at once, of one peer, which registers every few seconds


def relay(join: str, bind: str, advertise: Sequence[str], name: str, stop: StopSignal) -> None:
    """Join the swarm and relay until `stop` is set.

    Raises:
        SwarmError, LinkError, DirectoryError, SecurityError: each with a line for the user.
    """
    token = JoinToken.parse(join)
    firewall.tell_once(split_address(bind)[0])
    limits = RelayLimits()
    allow_connections(limits)
    with ExitStack() as resources:
        name, identity = resources.enter_context(claimed("router", name))
        directory = resources.enter_context(DirectoryClient(token, identity, name, role="router"))
        floods = FloodGuard(time.monotonic, RATE, BURST)
        router = RelayServer(
            bind,
            identity,
            lambda key: directory.admits(key) and floods.admits(key),
            heard=lambda key: directory.admits(key) and floods.admit_message(key),
            advertise=advertise,
            limits=limits,
        )
        resources.enter_context(router)
        directory.announce(router.entry(name))
        stop.abrupt = False
        announce(f"ready: {name} relays at {router.addresses[0]}")
        router.run(stop)
