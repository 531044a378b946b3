"""`swarm models`: the catalogue, and the models that are on this machine."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from swarm.cli.options import json_option
from swarm.models import resolve
from swarm.models.catalogue import CATALOGUE
from swarm.system import home
from swarm.system.process import user_errors


@click.command()
@json_option
def models(as_json: bool) -> None:
    """The models that have a name here, and those that are on this machine."""
    with user_errors():
        here = resolve.local_models()
        names = [*CATALOGUE, *(name for name in here if name not in CATALOGUE)]
        if as_json:
            click.echo(json.dumps([{"name": name, "here": name in here} for name in names], indent=2))
            return
        table = Table(box=None, header_style="dim")
        for title in ("model", "size", "licence", "on this machine"):
            table.add_column(title)
        for name in names:
            entry = CATALOGUE.get(name)
            size, licence = (home.size(entry.size), entry.licence) if entry else ("", "")
            table.add_row(name, size, licence, "yes" if name in here else "")
        Console().print(table)
