"""`swarm-gateway`: the OpenAI API and a chat page in front of a swarm."""

from __future__ import annotations

import asyncio
import socket

import click

from openai_api import site
from openai_api.app import create_app
from openai_api.console import Console
from openai_api.gateway import Gateway
from openai_api.keys import is_loopback
from openai_api.room import AT_ONCE, PATIENCE, WAITING, Room
from openai_api.serving import HttpServer, listen, url_of
from routing.security import AdminKey, SecurityError
from swarm import AsyncSwarmClient, Expelled, SwarmError, console, firewall, join
from swarm.admin import find_key
from swarm.cli import from_file, join_option, patience_option, private_option, verbose_option, verify_option
from swarm.process import Stop, announce, clear_errors, log_to_stderr, stopping


@click.command("swarm-gateway", context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@join_option
@click.option("--host", default="127.0.0.1", help="Address to listen on. Another one than loopback needs an API key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0 takes any free port.")
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="SWARM_API_KEY",
    show_default=False,
    help="Answer only requests with 'Authorization: Bearer KEY'. Better in SWARM_API_KEY, out of other users' sight.",
)
@click.option(
    "--at-once", type=click.IntRange(min=1), default=AT_ONCE, help="Requests that are answered at the same time."
)
@click.option(
    "--waiting",
    type=click.IntRange(min=0),
    default=WAITING,
    help=f"Requests that may wait for their turn, {PATIENCE:g} s at most; others get status 429.",
)
@click.option(
    "--admin-key",
    envvar="SWARM_ADMIN_KEY",
    type=click.Path(exists=True),
    metavar="FILE",
    show_default=False,
    help="Of a directory: lets whoever uses the page make join tokens.  [default: without an API key the one on this "
    "machine, if any]",
)
@private_option
@verify_option
@patience_option
@verbose_option
def command(
    join_token: str | None,
    host: str,
    port: int,
    api_key: str | None,
    at_once: int,
    waiting: int,
    admin_key: str | None,
    private: bool,
    verify: int,
    patience: float,
    verbose: bool,
) -> None:
    """Offer a swarm's models by the OpenAI API, with a chat page at /.

    Prints one line 'ready: URL' once it takes requests. It starts as soon as the directory answers; models appear when
    their servers do.
    """
    log_to_stderr(verbose)
    with clear_errors(), stopping() as stop:
        key = (api_key or "").strip() or None
        if key is None and not is_loopback(host):
            raise SwarmError(
                f"without an API key the gateway listens on this machine only, not on {host}: "
                "set SWARM_API_KEY, or pass --api-key",
                exit_code=2,
            )
        token = join.find(join_token)
        firewall.tell_once(host)
        inviting = _admin_key(admin_key, key)
        with listen(host, port) as listener:
            client = AsyncSwarmClient(join=token, name="gateway", patience=patience, private=private)
            asyncio.run(_serve(client, listener, host, key, Room(at_once, waiting), stop, inviting, verify))


def _admin_key(given: str | None, api_key: str | None) -> AdminKey | None:
    """What the page may make join tokens with. Holders of an API key are not thereby the swarm's administrators."""
    if given is None and api_key is not None:
        return None
    try:
        return find_key(given)
    except (SwarmError, SecurityError):
        if given is not None:
            raise
        return None


async def _serve(
    client: AsyncSwarmClient,
    listener: socket.socket,
    host: str,
    key: str | None,
    room: Room,
    stop: Stop,
    admin_key: AdminKey | None,
    checks: int,
) -> None:
    closing = asyncio.Event()
    async with client:
        gateway = Gateway(client, checks=checks)
        live = Console(client, admin_key)
        app = create_app(gateway, api_key=key, closing=closing, room=room, site=site.load(), console=live)
        server = HttpServer(
            app,
            lambda: stop.is_set() or client.expelled,
            closing,
            on_ready=lambda: announce(f"ready: {url_of(host, listener)}"),
        )
        stop.abrupt = False
        working = [asyncio.create_task(gateway.prefetch()), asyncio.create_task(live.watch())]
        try:
            await server.serve(sockets=[listener])
        finally:
            for task in working:
                task.cancel()
        if client.expelled:
            raise Expelled


def main() -> None:
    console.tolerate()
    command.main(
        prog_name="swarm-gateway",
        auto_envvar_prefix="SWARM_GATEWAY",
        default_map=from_file().get("gateway", {}),
    )


if __name__ == "__main__":
    main()
