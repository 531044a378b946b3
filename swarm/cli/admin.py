"""`swarm token`, `swarm peers`, `swarm expel`: the members of a swarm, decided where a directory runs, or with its
admin key.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import msgspec
from rich.text import Text

from routing import wire
from routing.directory.admin import Administrator, Records
from routing.directory.roster import Roster
from routing.security import TOKEN_PREFIX, AdminKey, Identity, JoinToken, short_id
from swarm.cli.options import json_option
from swarm.cli.tables import format_age, format_date, print_table
from swarm.errors import SwarmError
from swarm.system import home
from swarm.system.process import user_errors

P = ParamSpec("P")
R = TypeVar("R")

STATES = ("directory", "up")  # folders under SWARM_HOME in which a directory keeps its state
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
COLOURS = {"good": "green", "revoked": "red", "expired": "yellow", "used up": "dim"}


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """`90s`, `30m`, `12h`, `7d`, `2w`, in seconds. Raises: click.BadParameter: it is none of those."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", value.strip())
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"{value!r} is no duration: write for example 90s, 30m, 12h, 7d or 2w")
    return float(match[1]) * UNITS[match[2]]


def find_admin_key(given: str | None) -> AdminKey:
    """The admin key in the file `given`, or of the directory that was last started from this `SWARM_HOME`.

    Raises:
        SwarmError: there is none.
        SecurityError: the file holds none.
    """
    if given is not None:
        path = Path(given)
        return AdminKey.load(path / "admin.key" if path.is_dir() else path)
    here = [path for state in STATES if (path := home.home() / state / "admin.key").is_file()]
    if not here:
        raise SwarmError(
            f"no directory keeps its state under {home.home()}: run this where swarm-directory or 'swarm up' runs, or "
            "give its admin.key with --admin-key",
            2,
        )
    return AdminKey.load(max(here, key=lambda path: path.stat().st_mtime))


def key_option(command: Callable[P, R]) -> Callable[P, R]:
    """Add the option that names an admin key."""
    return click.option(
        "--admin-key",
        envvar="SWARM_ADMIN_KEY",
        type=click.Path(exists=True),
        metavar="FILE",
        help="Of the directory, from its state folder.  [default: the one on this machine]",
    )(command)


@click.group()
def token() -> None:
    """Join tokens: make, list and revoke them."""


@token.command()
@click.option("--expires", callback=duration, metavar="DURATION", help="90s, 30m, 12h, 7d, 2w.  [default: never]")
@click.option("--uses", type=click.IntRange(1), help="How many may enrol with it.  [default: any number]")
@click.option("--directory", is_flag=True, help="It admits a further directory, which all others trust, and no peers.")
@key_option
@json_option
def create(expires: float | None, uses: int | None, directory: bool, admin_key: str | None, as_json: bool) -> None:
    """Print a new join token."""
    with user_errors(), Administrator(find_admin_key(admin_key)) as admin:
        if directory:
            uses = uses or 1
        made, enrolment = admin.issue(expires, uses or 0, "directory" if directory else "peer")
        if as_json:
            click.echo(json.dumps({"token": str(made), **_token_entry(Roster(), enrolment, time.time())}, indent=2))
        else:
            click.echo(str(made))


@token.command("list")
@key_option
@json_option
def list_tokens(admin_key: str | None, as_json: bool) -> None:
    """The join tokens, without their secrets."""
    with user_errors(), Administrator(find_admin_key(admin_key)) as admin:
        roster = admin.records().roster
        enrolments = sorted(roster.enrolments.values(), key=lambda enrolment: enrolment.created)
        entries = [_token_entry(roster, enrolment, time.time()) for enrolment in enrolments]
        if as_json:
            click.echo(json.dumps(entries, indent=2))
            return
        rows = [
            (
                entry["id"],
                Text(entry["state"], COLOURS[entry["state"]]),
                "directories" if entry["role"] == "directory" else "peers",
                f"{entry['used']} of {entry['uses']}" if entry["uses"] else str(entry["used"]),
                format_date(entry["created"]),
                format_date(entry["expires"]) or "never",
            )
            for entry in entries
        ]
        print_table(("token", "state", "admits", "used", "created", "expires"), rows)


@token.command()
@click.argument("id")
@click.option("--and-expel", is_flag=True, help="Also expel all who came with it.")
@key_option
def revoke(id: str, and_expel: bool, admin_key: str | None) -> None:
    """Admit no further peer with the join token ID (or the token itself). Peers that came with it stay."""
    with user_errors(), Administrator(find_admin_key(admin_key)) as admin:
        roster = admin.records().roster
        enrolment = _find_token(roster, id)
        admin.revoke(enrolment.key)
        came = _enrolled_with(roster, short_id(enrolment.key))
        if and_expel:
            for record in came:
                admin.expel(record.key)
        click.echo(f"revoked {short_id(enrolment.key)}")
        if came and and_expel:
            click.echo(f"expelled {_names(came)}")
        elif came:
            click.echo(f"{_names(came)} came with it and stay: expel them with 'swarm expel', or all with --and-expel")


@click.command()
@key_option
@json_option
def peers(admin_key: str | None, as_json: bool) -> None:
    """Who is a member of the swarm."""
    with user_errors(), Administrator(find_admin_key(admin_key)) as admin:
        records = admin.records()
        now = time.time()
        entries = sorted(_peer_entries(records), key=lambda entry: (entry["role"], entry["name"], entry["key"]))
        if as_json:
            click.echo(json.dumps(entries, indent=2))
            return
        rows = [
            (
                entry["name"],
                entry["id"],
                entry["role"],
                "see swarm status" if entry["role"] == "directory" else format_age(entry["seen"], now),
                format_date(entry["enrolled"]),
                entry["token"],
            )
            for entry in entries
        ]
        print_table(("name", "id", "role", "last seen", "enrolled", "token"), rows)


@click.command()
@click.argument("peer")
@key_option
def expel(peer: str, admin_key: str | None) -> None:
    """Throw PEER (a name, or the beginning of its id) out: its connections end, and its key is never let in again."""
    with user_errors(), Administrator(find_admin_key(admin_key)) as admin:
        roster = admin.records().roster
        record = _find_peer(roster, peer)
        admin.expel(record.key)
        click.echo(f"expelled {_names([record])}")
        enrolment = next((known for known in roster.enrolments.values() if short_id(known.key) == record.token), None)
        if enrolment is not None and roster.trouble(enrolment, time.time()) == "":
            click.echo(
                f"The join token {record.token} with which it came still admits its holder under another key: "
                f"revoke it with 'swarm token revoke {record.token}'"
            )


commands: Sequence[click.Command] = (token, peers, expel)


# --- what is found and shown -----------------------------------------------------------------------------------------

KnownPeer = wire.Member | wire.DirectoryInfo


def _find_token(roster: Roster, wanted: str) -> wire.TokenRecord:
    if wanted.startswith(TOKEN_PREFIX):
        wanted = short_id(Identity.from_secret(JoinToken.parse(wanted).secret).public)
    found = [enrolment for enrolment in roster.enrolments.values() if short_id(enrolment.key).startswith(wanted)]
    if len(found) != 1:
        raise SwarmError(
            f"{'no' if not found else 'more than one'} join token is {wanted!r}: see 'swarm token list'", 2
        )
    return found[0]


def _find_peer(roster: Roster, wanted: str) -> KnownPeer:
    known: list[KnownPeer] = [*roster.members.values(), *roster.sites.values()]
    rules: tuple[Callable[[KnownPeer], bool], ...] = (
        lambda peer: wanted in (peer.key, short_id(peer.key)),
        lambda peer: wanted == peer.name,
        lambda peer: len(wanted) >= 4 and (short_id(peer.key).startswith(wanted) or peer.key.startswith(wanted)),
    )
    for matches in rules:
        found = [peer for peer in known if matches(peer)]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(short_id(peer.key) for peer in found)
            raise SwarmError(f"several peers are {wanted!r}: say which by its id, one of {ids}", 2)
    if any(wanted in (key, short_id(key), gone.name) for key, gone in roster.expelled.items()):
        raise SwarmError(f"{wanted!r} was expelled before")
    raise SwarmError(f"no peer is {wanted!r}: see 'swarm peers'", 2)


def _enrolled_with(roster: Roster, token: str) -> list[KnownPeer]:
    known: list[KnownPeer] = [*roster.members.values(), *roster.sites.values()]
    return [peer for peer in known if peer.token == token]


def _names(peers: Sequence[KnownPeer]) -> str:
    return ", ".join(f"{peer.name or 'a peer'} ({short_id(peer.key)})" for peer in peers)


def _token_entry(roster: Roster, enrolment: wire.TokenRecord, now: float) -> dict[str, Any]:
    entry = {key: value for key, value in msgspec.structs.asdict(enrolment).items() if key != "key"}
    state = roster.trouble(enrolment, now) or "good"
    return {"id": short_id(enrolment.key), "state": state, **entry, "used": roster.used(enrolment)}


def _peer_entries(records: Records) -> list[dict[str, Any]]:
    def entry(peer: KnownPeer, role: str, enrolled: float | None) -> dict[str, Any]:
        return {
            "name": peer.name,
            "id": short_id(peer.key),
            "key": peer.key,
            "role": role,
            "seen": records.seen.get(peer.key),
            "enrolled": enrolled,
            "token": peer.token,
        }

    members = [entry(member, member.role, member.enrolled) for member in records.roster.members.values()]
    return [*members, *(entry(site, "directory", None) for site in records.roster.sites.values())]
