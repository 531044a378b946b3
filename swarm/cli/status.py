"""`swarm status`: the servers of a swarm and their blocks, as a table with a bar, or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from backends import registry
from routing import wire
from routing.planning.routes import coverage
from routing.view import View
from swarm.cli.options import join_option, json_option
from swarm.client.client import ServedModel, SwarmClient
from swarm.system.home import size
from swarm.system.join import find_join_token
from swarm.system.process import user_errors

BAR = 24  # columns
COLOURS = {"ready": "green", "joining": "yellow", "draining": "magenta"}


@click.command()
@join_option
@json_option
@click.option("--watch", is_flag=True, help="Draw it again whenever it changes, until Ctrl-C.")
def status(join_token: str | None, as_json: bool, watch: bool) -> None:
    """Who serves which blocks."""
    with user_errors(), SwarmClient(find_join_token(join_token)) as swarm:
        if as_json:
            click.echo(json.dumps(status_json(swarm.models(), swarm.view), indent=2))
        elif watch:
            with Live(refresh_per_second=2, get_renderable=lambda: status_table(swarm.models(), swarm.view)):
                while True:
                    time.sleep(1)
        else:
            Console(width=None if sys.stdout.isatty() else 120).print(status_table(swarm.models(), swarm.view))


def status_json(models: Sequence[ServedModel], view: View) -> dict[str, Any]:
    """Everything that the directories say, for programs, but for members and fingerprints."""
    return {
        "directories": [_address_entry(each) for each in view.directories.values()],
        "routers": [_address_entry(each) for each in view.routers.values()],
        "models": [
            {
                "name": model.name,
                "blocks": model.blocks,
                "context_length": model.context_length,
                "complete": model.complete,
                "missing": [list(span) for span in model.missing],
                "replicas": coverage(model.servers, model.blocks),
                "servers": [_server(server) for server in model.servers],
            }
            for model in models
        ],
    }


def _server(server: wire.ServerInfo) -> dict[str, Any]:
    fields = msgspec.structs.asdict(server) | msgspec.structs.asdict(server.load)
    return {name: value for name, value in fields.items() if name not in ("fingerprint", "load")}


def _address_entry(each: wire.DirectoryInfo | wire.RouterInfo) -> dict[str, Any]:
    return {"key": each.key, "name": each.name, "addresses": each.addresses}


def status_table(models: Sequence[ServedModel], view: View) -> RenderableType:
    """Everything that the directories say, for people: a table with a bar of blocks for each model."""
    parts: list[RenderableType] = [part for model in models for part in (_heading(model), _table(model))]
    if not models:
        parts.append(Text("no server is in the swarm yet: start one with  swarm-server MODEL --join TOKEN"))
    if len(view.directories) > 1:
        parts.append(_name_line("directories", (f"{d.name} {d.addresses[0]}" for d in view.directories.values())))
    if view.routers:
        parts.append(_name_line("routers", (f"{r.name} {r.addresses[0]}" for r in view.routers.values())))
    return Group(*parts)


def _name_line(title: str, entries: Iterable[str]) -> Text:
    return Text.assemble((f"{title}  ", "dim"), ", ".join(sorted(entries)))


def _heading(model: ServedModel) -> Text:
    replicas = coverage(model.servers, model.blocks)
    text = Text.assemble((model.name, "bold"), f"  {model.blocks} blocks, replicas of each  ")
    for column in range(BAR):
        here = replicas[
            column * model.blocks // BAR : max((column + 1) * model.blocks // BAR, column * model.blocks // BAR + 1)
        ]
        text.append(_digit(min(here)), style="green" if min(here) else "bold red")
    if model.complete:
        text.append("  complete", style="green")
    else:
        spans = ", ".join(f"{start}:{end}" for start, end in model.missing)
        text.append(f"  blocks {spans} are missing", style="bold red")
    return text


def _digit(replicas: int) -> str:
    return "·" if replicas == 0 else "█" if replicas == 1 else str(replicas) if replicas < 10 else "+"


def _table(model: ServedModel) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for title in ("server", "blocks", "", "state", "computes on", "busy", "KV free", "weights"):
        table.add_column(title, no_wrap=True, justify="right" if title in ("busy", "KV free", "weights") else "left")
    for server in model.servers:
        table.add_row(
            server.name,
            f"{server.start}:{server.end}",
            _bar(server, model.blocks),
            Text(server.state, style=COLOURS[server.state]),
            _engine(server),
            str(server.load.sessions),
            f"{server.load.kv_free / 1000:.0f}k" if server.kv_tokens else "",
            size(server.load.memory_used) if server.load.memory_used else "",
        )
    return table


def _engine(server: wire.ServerInfo) -> str:
    """`cpu float32`; what is not the default backend is named."""
    name = "" if server.backend == registry.DEFAULT else f" {server.backend}"
    return f"{server.device} {server.quantize or server.dtype}{name}"


def _bar(server: wire.ServerInfo, blocks: int) -> Text:
    start, end = server.start * BAR // blocks, max(server.end * BAR // blocks, server.start * BAR // blocks + 1)
    bar = Text("·" * start, style="dim")
    bar.append("█" * (end - start), style=COLOURS[server.state])
    bar.append("·" * (BAR - end), style="dim")
    return bar
