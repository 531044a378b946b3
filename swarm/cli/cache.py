"""`swarm cache`: the spans that were cut or compiled on this machine, and how to be rid of them."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from backends.artifact_cache import HeldArtifact, entries, remove
from swarm.cli.admin import duration
from swarm.cli.options import json_option
from swarm.cli.tables import format_age, print_table
from swarm.models import resolve
from swarm.system import home
from swarm.system.process import user_errors


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def cache(context: click.Context, as_json: bool) -> None:
    """The spans that servers have cut or compiled on this machine: list them, or clear them away."""
    if context.invoked_subcommand:
        return
    folder = home.home() / "spans"
    with user_errors(), home.disk_errors(folder):
        found = entries(folder)
    if as_json:
        click.echo(json.dumps([_as_json(kept) for kept in found], indent=2))
        return
    now = time.time()
    rows = [
        (
            _model(kept),
            kept.label.blocks if kept.label else "",
            kept.label.precision if kept.label else "",
            kept.label.backend if kept.label else "",
            home.size(kept.size),
            "in use" if kept.open else format_age(kept.used, now),
        )
        for kept in found
    ]
    print_table(("model", "blocks", "precision", "backend", "size", "used"), rows)


@cache.command()
@click.option("--older-than", callback=duration, metavar="DURATION", help="Only what was not used for 12h, 7d, 2w, ...")
def clear(older_than: float | None) -> None:
    """Delete the spans that no server uses now. A server that wants one of them makes it anew."""
    folder = home.home() / "spans"
    before = time.time() - (older_than or 0)
    freed, left = 0, []
    with user_errors(), home.disk_errors(folder):
        for kept in entries(folder):
            if kept.used > before:
                continue
            if remove(folder, kept):
                freed += kept.size
            else:
                left.append(f"{_model(kept)} {kept.label.blocks if kept.label else ''}".strip())
    click.echo(f"freed {home.size(freed)}" if freed else "nothing to delete")
    if left:
        click.echo(f"in use and left: {', '.join(left)}")


def _model(kept: HeldArtifact) -> str:
    return resolve.model_name(Path(kept.label.model)) if kept.label else "(unfinished)"


def _as_json(kept: HeldArtifact) -> dict[str, object]:
    label = asdict(kept.label) if kept.label else {}
    facts = {"name": _model(kept), "path": str(kept.path), "size": kept.size, "used": kept.used, "open": kept.open}
    return {**label, **facts}
