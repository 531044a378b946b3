"""The command line: the group `swarm`, the commands that are in it, and the programs that each are one of them."""

from __future__ import annotations

from typing import Any

import click

from swarm.cli import admin
from swarm.cli.bench import bench
from swarm.cli.cache import cache
from swarm.cli.chat.command import chat
from swarm.cli.doctor.command import doctor
from swarm.cli.extensions import ExtensibleGroup
from swarm.cli.generate import client, run
from swarm.cli.models import models
from swarm.cli.options import config_settings
from swarm.cli.programs.directory import directory
from swarm.cli.programs.router import router
from swarm.cli.programs.server import server
from swarm.cli.programs.up import up
from swarm.cli.status import status
from swarm.system import console
from swarm.version import __version__


@click.group(cls=ExtensibleGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="swarm")
def cli() -> None:
    """Run a language model that is too large for one machine across several."""


for command in (
    *(up, directory, server, router),
    *(client, run, chat, status, models, bench, doctor, cache),
    *admin.commands,
):
    cli.add_command(command)


def main() -> None:
    """Run `swarm`."""
    _run(cli, prog_name="swarm", auto_envvar_prefix="SWARM", default_map=config_settings())


def server_main() -> None:
    """Run `swarm-server`."""
    _run_program("server", server)


def directory_main() -> None:
    """Run `swarm-directory`."""
    _run_program("directory", directory)


def router_main() -> None:
    """Run `swarm-router`."""
    _run_program("router", router)


def client_main() -> None:
    """Run `swarm-client`."""
    _run_program("client", client)


def _run_program(name: str, command: click.Command) -> None:
    """Run a command as a program of its own, with the same settings as under `swarm`."""
    settings = config_settings().get(name, {})
    _run(command, prog_name=f"swarm-{name}", auto_envvar_prefix=f"SWARM_{name.upper()}", default_map=settings)


def _run(command: click.Command, **arguments: Any) -> None:
    console.make_streams_lenient()
    command.main(**arguments)
