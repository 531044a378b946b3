"""Options of commands that use the accounts. Light: the database's libraries come in when a command runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import click

P = ParamSpec("P")
R = TypeVar("R")

NONE = "none"

accounts_option = click.option(
    "--accounts",
    envvar="SWARM_ACCOUNTS",
    metavar="URL",
    show_default=False,
    help="Members, keys and usage: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE.  "
    "[default: a file below SWARM_HOME]",
)


@dataclass(frozen=True)
class OpenIdOptions:
    """Open id options: what the options below say, by their names; `openid` None; there is no sign-in."""

    openid: str | None = None
    openid_client_id: str | None = None
    openid_client_secret: str | None = None
    openid_owner: tuple[str, ...] = ()
    openid_admit: tuple[str, ...] = ()
    url: str | None = None


_OPTIONS = (
    click.option("--openid", metavar="URL", help="Let members sign in with this OpenID provider."),
    click.option("--openid-client-id", metavar="ID", help="As the provider has given it."),
    click.option(
        "--openid-client-secret",
        metavar="SECRET",
        envvar="SWARM_OPENID_CLIENT_SECRET",
        show_default=False,
        help="Better in SWARM_OPENID_CLIENT_SECRET, out of other users' sight.",
    ),
    click.option(
        "--openid-owner",
        multiple=True,
        metavar="EMAIL",
        show_default=False,
        help="Becomes an owner when signing in.",
    ),
    click.option(
        "--openid-admit",
        multiple=True,
        metavar="EMAIL|@DOMAIN",
        show_default=False,
        help="Becomes a member when signing in. Others must have been added: 'swarm member add'.",
    ),
    click.option("--url", metavar="URL", help="Where browsers find the gateway.  [default: where it listens]"),
)


def signing_in_options(command: Callable[P, R]) -> Callable[P, R]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
