"""`swarm-gateway`: the OpenAI API and a chat page in front of a swarm."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import click

from openai_api.accounts import setup
from openai_api.accounts.options import OpenIdOptions, accounts_option, signing_in_options
from openai_api.app import AppSettings, create_app
from openai_api.console.console import Console
from openai_api.gateway import Gateway
from openai_api.http import static_site
from openai_api.http.auth import is_loopback
from openai_api.http.concurrency import AT_ONCE, PATIENCE, WAITING, RequestQueue
from openai_api.http.server import HttpServer, listen, url_of
from openai_api.routes.state import GatewayState
from routing.security import AdminKey, SecurityError
from swarm import AsyncSwarmClient, Expelled, SwarmError
from swarm.cli.admin import find_admin_key
from swarm.cli.options import (
    config_settings,
    join_option,
    patience_option,
    private_option,
    verbose_option,
    verify_option,
)
from swarm.system import console, firewall, join
from swarm.system.process import StopSignal, log_to_stderr, print_contract_line, stop_signals, user_errors


@click.command("swarm-gateway", context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@join_option
@click.option("--host", default="127.0.0.1", help="Address to listen on. Another one than loopback needs a key.")
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
    help="Of a directory: lets the page's users make join tokens.  [default: the one on this machine, if any, "
    "for owners of accounts, and for all where there is no key and no account]",
)
@accounts_option
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    show_default=False,
    help="A web page of others that may use the gateway from browsers, such as https://app.example.org.",
)
@signing_in_options
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
    accounts: str | None,
    allow_origin: tuple[str, ...],
    private: bool,
    verify: int,
    patience: float,
    verbose: bool,
    **openid: Any,
) -> None:
    """Offer a swarm's models by the OpenAI API, with a chat page at /.

    Prints one line 'ready: URL' once it takes requests. It starts as soon as the directory answers; models appear when
    their servers do.
    """
    log_to_stderr(verbose)
    with user_errors(), stop_signals() as stop:
        signing_in = OpenIdOptions(**openid)
        provider, origins = setup.provider(signing_in), setup.origins_of(allow_origin)
        members = setup.accounts_of(accounts, signing_in)
        key = _key_of(api_key, host, setup.can_get_in(members, signing_in))
        token = join.find_join_token(join_token)
        firewall.log_rule_once(host)
        settings = AppSettings(
            key,
            site=static_site.load(),
            invites=admin_key is not None or members is None,
            origins=origins,
        )
        inviting = _admin_key(admin_key, key is None or members is not None)
        with listen(host, port) as listener:
            client = AsyncSwarmClient(join=token, name="gateway", patience=patience, private=private)
            url = url_of(host, listener)
            state = GatewayState.make(
                Gateway(client, checks=verify),
                queue=RequestQueue(at_once, waiting),
                console=Console(client, inviting),
                accounts=members,
                sign_in=setup.sign_in_of(provider, members, signing_in.url or url),
            )
            asyncio.run(_serve(client, listener, url, stop, state, settings))


def _key_of(api_key: str | None, host: str, has_accounts: bool) -> str | None:
    """The gateway's own key. Raises: SwarmError: others can reach the gateway, and nothing keeps them out."""
    key = (api_key or "").strip() or None
    if key is None and not is_loopback(host) and not has_accounts:
        raise SwarmError(
            f"without an API key the gateway listens on this machine only, not on {host}: make one with "
            "'swarm key create NAME --owner', or set SWARM_API_KEY, or pass --api-key",
            exit_code=2,
        )
    return key


def _admin_key(given: str | None, look: bool) -> AdminKey | None:
    """What the page may make join tokens with. Holders of an API key are not thereby the swarm's administrators.

    Args:
        look: for the one on this machine, where none is given.
    """
    if given is None and not look:
        return None
    try:
        return find_admin_key(given)
    except (SwarmError, SecurityError):
        if given is not None:
            raise
        return None


async def _serve(
    client: AsyncSwarmClient,
    listener: socket.socket,
    url: str,
    stop: StopSignal,
    state: GatewayState,
    settings: AppSettings,
) -> None:
    async with client:
        server = HttpServer(
            create_app(state, settings),
            lambda: stop.is_set() or client.expelled,
            state.closing,
            on_ready=lambda: print_contract_line(f"ready: {url}"),
        )
        stop.abrupt = False
        assert state.console is not None
        working = [asyncio.create_task(state.gateway.prefetch()), asyncio.create_task(state.console.watch())]
        if state.accounts is not None:
            working.append(asyncio.create_task(state.accounts.recorder.run()))
        try:
            await server.serve(sockets=[listener])
        finally:
            for task in working:
                task.cancel()
            if state.accounts is not None:
                await state.accounts.close()
        if client.expelled:
            raise Expelled


def main() -> None:
    console.make_streams_lenient()
    command.main(
        prog_name="swarm-gateway",
        auto_envvar_prefix="SWARM_GATEWAY",
        default_map=config_settings().get("gateway", {}),
    )


if __name__ == "__main__":
    main()
