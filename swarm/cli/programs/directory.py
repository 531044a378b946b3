"""`swarm-directory`: the program that admits peers, keeps who is there, and assigns spans."""

from __future__ import annotations

from pathlib import Path

import click

from swarm.cli.options import advertise_option, verbose_option
from swarm.system import firewall, home
from swarm.system.process import log_to_stderr, print_contract_line, stop_signals, user_errors


@click.command()
@click.option("--bind", default="0.0.0.0:7700", show_default=True, metavar="HOST:PORT", help="Port 0: any free one.")
@click.option("--state-dir", type=click.Path(file_okay=False), help="Keys and members.  [default: under SWARM_HOME]")
@advertise_option
@click.option("--token-expires", type=click.FloatRange(min=0), metavar="SECONDS", help="Later, no new peer can enrol.")
@click.option("--join", "join_token", metavar="TOKEN", help="Of 'swarm token create --directory': be one of several.")
@click.option("--name", default="", help="Shown to others.  [default: this machine's, with '-directory']")
@verbose_option
def directory(
    bind: str,
    state_dir: str | None,
    advertise: tuple[str, ...],
    token_expires: float | None,
    join_token: str | None,
    name: str,
    verbose: bool,
) -> None:
    """Admit peers, keep who is there, and assign spans."""
    from routing.directory.directory import Directory
    from routing.security import JoinToken

    log_to_stderr(verbose)
    with user_errors(), stop_signals() as stop:
        folder = Path(state_dir) if state_dir else home.folder("directory")
        others = JoinToken.parse(join_token) if join_token else None
        firewall.log_rule_once(bind.rpartition(":")[0])
        service = Directory(bind, folder, advertise=advertise, token_ttl=token_expires, join=others, name=name)
        try:
            print_contract_line(f"join: {service.token}")
            stop.abrupt = False
            service.run(stop)
        finally:
            service.close()
