"""`swarm key`, `swarm member`, `swarm usage`: accounts of the gateway, which need not run for it. They are loaded by
`swarm` through the entry points `swarm.commands`, so the database's libraries come in when a command runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from openai_api.accounts.limits import DAY, MOST_REQUESTS, KeyLimits, day_of
from openai_api.accounts.options import NONE, accounts_option
from openai_api.accounts.principals import SCOPES, USING, Key, Person
from routing.security import short_id
from swarm.cli.admin import duration
from swarm.cli.options import json_option
from swarm.cli.tables import format_age, format_date, print_table
from swarm.errors import SwarmError
from swarm.system.process import user_errors

if TYPE_CHECKING:
    from openai_api.accounts.store import Store

COLOURS = {"good": "green", "revoked": "red", "removed": "red", "expired": "yellow"}


@contextmanager
def opened(accounts: str | None) -> Iterator[Store]:
    """The accounts, made where there are none."""
    if accounts == NONE:
        raise click.UsageError("--accounts none is for the gateway: say which accounts are meant")
    from openai_api.accounts.database import connect
    from openai_api.accounts.store import Store

    with user_errors():
        store = Store(connect(accounts))
        try:
            yield store
        finally:
            store.close()


@click.group()
def key() -> None:
    """API keys of the gateway: make, list and revoke them."""


@key.command()
@click.argument("name")
@click.option("--for", "whose", metavar="MEMBER", help="Whose key it is; made if new.  [default: NAME]")
@click.option("--owner", is_flag=True, help="The member manages all members and keys, and the key may do so.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="[default: inference, console]")
@click.option("--expires", callback=duration, metavar="DURATION", help="90s, 30m, 12h, 7d, 2w.  [default: never]")
@click.option("--models", metavar="NAME,...", help="The only ones that it may use.  [default: all]")
@click.option("--requests-per-minute", type=click.IntRange(1, MOST_REQUESTS))
@click.option("--tokens-per-day", type=click.IntRange(1), help="Of prompts and answers together.")
@click.option("--sessions", type=click.IntRange(1), help="At the same time.")
@accounts_option
@json_option
def create(
    name: str,
    whose: str | None,
    owner: bool,
    scopes: tuple[str, ...],
    expires: float | None,
    models: str | None,
    requests_per_minute: int | None,
    tokens_per_day: int | None,
    sessions: int | None,
    accounts: str | None,
    as_json: bool,
) -> None:
    """Print a new API key. It is shown this once: only a digest of it is kept."""
    now = time.time()
    wanted = set(scopes) or (set(SCOPES) if owner else set(USING))
    allowed = [model.strip() for model in models.split(",") if model.strip()] if models is not None else None
    limits = KeyLimits(requests_per_minute, tokens_per_day, sessions)
    with opened(accounts) as store:
        person = store.person(whose or name) or store.add_person(whose or name, "owner" if owner else "member", now)
        if owner and person.role != "owner":
            store.set_role(person.id, "owner")
        made, text = store.add_key(person, name, wanted, now, allowed, limits, now + expires if expires else None)
        if as_json:
            click.echo(json.dumps({"key": str(text), **made.shown(now)}, indent=2))
        else:
            click.echo(str(text))
            click.echo(f"Key {made.id} of {person.name}. Keep it: it cannot be shown again.", err=True)


@key.command("list")
@accounts_option
@json_option
def list_keys(accounts: str | None, as_json: bool) -> None:
    """The keys, without their secrets."""
    with opened(accounts) as store:
        now = time.time()
        keys = store.keys()
        if as_json:
            click.echo(json.dumps([each.shown(now) for each in keys], indent=2))
            return
        rows = [
            (
                each.id,
                each.name,
                each.person.name + (" (owner)" if each.person.role == "owner" else ""),
                Text(each.state(now), COLOURS[each.state(now)]),
                " ".join(scope for scope in SCOPES if scope in each.scopes),
                _limits(each),
                format_age(each.last_used, now) if each.last_used else "never",
                format_date(each.expires) or "never",
            )
            for each in keys
        ]
        print_table(("id", "name", "member", "state", "scopes", "limits", "last used", "expires"), rows)


@key.command()
@click.argument("id")
@accounts_option
def revoke(id: str, accounts: str | None) -> None:
    """Refuse the key ID (or the key itself, or its name) from now on."""
    with opened(accounts) as store:
        found = _the_key(store.keys(), id)
        store.revoke_key(found.id, time.time())
        click.echo(f"revoked {found.id} ({found.name})")


@click.group()
def member() -> None:
    """Who has an account at the gateway."""


@member.command("add")
@click.argument("name")
@click.option("--email", help="Who signs in with it is this member.")
@click.option("--owner", is_flag=True, help="Manages all members and keys.")
@accounts_option
def add_member(name: str, email: str | None, owner: bool, accounts: str | None) -> None:
    """Let NAME sign in, or have keys."""
    if email is not None and "@" not in email:
        raise click.BadParameter(f"{email!r} is no e-mail address", param_hint="--email")
    with opened(accounts) as store:
        store.add_person(name, "owner" if owner else "member", time.time(), email.lower() if email else None)
        click.echo(f"added {name}")


@member.command("list")
@accounts_option
@json_option
def list_members(accounts: str | None, as_json: bool) -> None:
    """The members."""
    with opened(accounts) as store:
        people = store.people()
        if as_json:
            click.echo(json.dumps([person.shown() for person in people], indent=2))
            return
        rows = [(person.name, person.role, person.email or "", format_date(person.created)) for person in people]
        print_table(("name", "role", "e-mail", "since"), rows)


@member.command("role")
@click.argument("name")
@click.argument("role", type=click.Choice(["owner", "member"]))
@accounts_option
def set_role(name: str, role: Any, accounts: str | None) -> None:
    """Make NAME an owner, or a member only."""
    with opened(accounts) as store:
        store.set_role(_the_person(store, name).id, role)
        click.echo(f"{name} is now {role}")


@member.command("remove")
@click.argument("name")
@accounts_option
def remove_member(name: str, accounts: str | None) -> None:
    """Refuse all keys of NAME and end what NAME has signed in to."""
    with opened(accounts) as store:
        store.remove_person(_the_person(store, name).id, time.time())
        click.echo(f"removed {name}")


@click.command()
@click.option("--by", type=click.Choice(["key", "server", "day"]), default="key", show_default=True)
@click.option("--days", type=click.IntRange(1, 3660), default=30, show_default=True, help="Today included; of UTC.")
@accounts_option
@json_option
def usage(by: str, days: int, accounts: str | None, as_json: bool) -> None:
    """What was used: tokens by key, or tokens times blocks by server."""
    since = day_of(time.time() - (days - 1) * DAY)
    with opened(accounts) as store:
        rows = store.served(since) if by == "server" else store.used(since)
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        elif by == "server":
            summed = _summed(rows, lambda row: (row["name"], short_id(row["server"]), row["model"]), ("work",))
            print_table(("server", "id", "model", "tokens x blocks"), summed)
        else:
            counts = ("requests", "prompt_tokens", "generated_tokens")
            if by == "day":
                print_table(
                    ("day", "requests", "prompt", "generated"), _summed(rows, lambda row: (row["day"],), counts)
                )
            else:
                summed = _summed(rows, lambda row: (row["key"], row["name"], row["person"], row["model"]), counts)
                print_table(("key", "name", "member", "model", "requests", "prompt", "generated"), summed)


def _summed(
    rows: Sequence[dict[str, Any]], group: Callable[[dict[str, Any]], tuple[str, ...]], counts: Sequence[str]
) -> list[tuple[str, ...]]:
    found: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        sums = found.setdefault(group(row), [0] * len(counts))
        for place, name in enumerate(counts):
            sums[place] += row[name]
    return [(*names, *map(str, sums)) for names, sums in found.items()]


def _limits(key: Key) -> str:
    parts = [
        f"{key.limits.requests_per_minute}/min" if key.limits.requests_per_minute else "",
        f"{key.limits.tokens_per_day} tokens/day" if key.limits.tokens_per_day else "",
        f"{key.limits.sessions} at once" if key.limits.sessions else "",
        ",".join(key.models) if key.models is not None else "",
    ]
    return "\n".join(filter(None, parts)) or "none"


def _the_key(keys: Sequence[Key], wanted: str) -> Key:
    from openai_api.accounts import key_format

    parsed = key_format.parse(wanted)
    rules: tuple[Callable[[Key], bool], ...] = (
        lambda key: key.id == (parsed.id if parsed else wanted),
        lambda key: key.name == wanted and key.revoked is None,
        lambda key: len(wanted) >= 4 and key.id.startswith(wanted),
    )
    for matches in rules:
        found = [key for key in keys if matches(key)]
        if len(found) == 1:
            return found[0]
        if found:
            raise SwarmError(f"several keys are {wanted!r}: say which by its id, see 'swarm key list'", 2)
    raise SwarmError(f"no key is {parsed.id if parsed else wanted!r}: see 'swarm key list'", 2)


def _the_person(store: Store, wanted: str) -> Person:
    found = store.person(wanted)
    if found is None:
        raise SwarmError(f"no member is {wanted!r}: see 'swarm member list'", 2)
    return found
