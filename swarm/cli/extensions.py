"""Commands of `swarm` that other packages bring: entry points of the group `swarm.commands`, loaded when used."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import cast

import click

ENTRY_POINT_GROUP = "swarm.commands"

# These are there also where the distribution is not installed (running from a source tree).
_ACCOUNTS = "openai_api.accounts.commands"
_BUILT_IN = {name: f"{_ACCOUNTS}:{name}" for name in ("key", "member", "usage")}


def _entry_points() -> dict[str, EntryPoint]:
    built_in = {name: EntryPoint(name, place, ENTRY_POINT_GROUP) for name, place in _BUILT_IN.items()}
    return built_in | {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


class ExtensibleGroup(click.Group):
    """A command group to which other packages add commands; its own win."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, own and found."""
        return sorted({*super().list_commands(ctx), *_entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name; None: there is none."""
        if own := super().get_command(ctx, cmd_name):
            return own
        point = _entry_points().get(cmd_name)
        if point is None:
            return None
        try:
            return cast(click.Command, point.load())
        except ImportError as error:
            return _unloadable_command(cmd_name, point, error)


def _unloadable_command(name: str, point: EntryPoint, error: ImportError) -> click.Command:
    """Stands for a command that cannot be loaded, and says so when it is used."""

    @click.command(name, short_help="Cannot be used here.", context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> None:
        raise click.ClickException(
            f"'swarm {name}' comes from {point.module}, which cannot be loaded ({error}): install layerswarm again, "
            "wholly: python -m pip install --force-reinstall layerswarm"
        )

    return command
