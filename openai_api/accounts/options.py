"""Options of commands that use the accounts. Light: the database's libraries come in when a command runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

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
class OpenId:
    """What the options below say; `issuer` None: nobody signs in."""

    issuer: str | None
    client_id: str | None
    client_secret: str | None
    owners: tuple[str, ...]
    admitted: tuple[str, ...]
    url: str | None


def openid_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options for signing in, handed to the command as one `openid: OpenId`."""
    options = [
        click.option("--openid", metavar="URL", help="Let members sign in with this OpenID provider."),
        click.option("--openid-client-id", metavar="ID", help="As the provider has given it."),
        click.option(
            "--openid-client-secret",
            metavar="SECRET",
            envvar="SWARM_OPENID_CLIENT_SECRET",
            show_default=False,
            help="Better in SWARM_OPENID_CLIENT_SECRET, out of other users' sight.",
        ),
        click.option("--openid-owner", multiple=True, metavar="EMAIL", help="Becomes an owner when signing in."),
        click.option(
            "--openid-admit",
            multiple=True,
            metavar="EMAIL|@DOMAIN",
            help="Becomes a member when signing in. Others must have been added: 'swarm member add'.",
        ),
        click.option("--url", metavar="URL", help="Where browsers find the gateway.  [default: where it listens]"),
    ]

    def with_openid(
        openid: str | None,
        openid_client_id: str | None,
        openid_client_secret: str | None,
        openid_owner: tuple[str, ...],
        openid_admit: tuple[str, ...],
        url: str | None,
        **others: Any,
    ) -> Any:
        found = OpenId(openid, openid_client_id, openid_client_secret, openid_owner, openid_admit, url)
        return command(openid=found, **others)

    with_openid.__doc__ = command.__doc__
    wrapped: Callable[..., Any] = with_openid
    # What stands below in the source has added its options to the function already.
    wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped
