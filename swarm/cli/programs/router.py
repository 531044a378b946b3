"""`swarm-router`: the relay for servers behind a NAT or a firewall, as a program."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

import click

from routing.client import DirectoryClient
from routing.links import split_address
from routing.security import JoinToken
from swarm.cli.options import advertise_option, join_option, verbose_option
from swarm.server.rate_limits import FloodGuard
from swarm.system import firewall, join
from swarm.system.identities import hold_identity
from swarm.system.process import StopSignal, log_to_stderr, print_contract_line, stop_signals, user_errors

RATE, BURST = 50.0, 500.0  # messages per second and at once, of one peer, which registers every few seconds


@click.command()
@join_option
@click.option("--bind", default="0.0.0.0:7701", show_default=True, metavar="HOST:PORT", help="Port 0: any free one.")
@advertise_option
@click.option("--name", default="", help="Shown to others.  [default: router-1, router-2, ...]")
@verbose_option
def router(join_token: str | None, bind: str, advertise: tuple[str, ...], name: str, verbose: bool) -> None:
    """Relay to servers that no peer can dial, because they are behind a NAT or a firewall."""
    log_to_stderr(verbose)
    with user_errors(), stop_signals() as stop:
        relay(join.find_join_token(join_token), bind, advertise, name, stop)


def relay(join_token: str, bind: str, advertise: Sequence[str], name: str, stop: StopSignal) -> None:
    """Join the swarm and relay until `stop` is set.

    Raises:
        SwarmError, LinkError, DirectoryError, SecurityError: each with a line for the user.
    """
    from routing.relay.rules import RelayLimits
    from routing.relay.server import RelayServer, allow_connections

    token = JoinToken.parse(join_token)
    firewall.log_rule_once(split_address(bind)[0])
    limits = RelayLimits()
    allow_connections(limits)
    with ExitStack() as resources:
        name, identity = resources.enter_context(hold_identity("router", name))
        directory = resources.enter_context(DirectoryClient(token, identity, name, role="router"))
        floods = FloodGuard(time.monotonic, RATE, BURST)
        server = RelayServer(
            bind,
            identity,
            lambda key: directory.admits(key) and floods.admits(key),
            heard=lambda key: directory.admits(key) and floods.admit_message(key),
            advertise=advertise,
            limits=limits,
        )
        resources.enter_context(server)
        directory.announce(server.entry(name))
        stop.abrupt = False
        print_contract_line(f"ready: {name} relays at {server.addresses[0]}")
        server.run(stop)
