"""Setup: which accounts a gateway uses, and whom it lets sign in."""

from __future__ import annotations

import re
import time

from openai_api.accounts.access import Accounts
from openai_api.accounts.database import connect, default_path
from openai_api.accounts.options import NONE, OpenIdOptions
from openai_api.accounts.sign_in import Provider, SignIn, provider_of
from openai_api.accounts.store import Store
from swarm.errors import SwarmError

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


def accounts_of(given: str | None, signing_in: OpenIdOptions) -> Accounts | None:
    """None: there are none. Without a URL there are some once a person was given one, or where people sign in.

    Raises:
        SwarmError: they cannot be opened. A gateway that went on without them would let all callers in.
    """
    wanted = signing_in.openid is not None
    if given == NONE:
        if wanted:
            raise SwarmError("--openid needs accounts: do not pass --accounts none", 2)
        return None
    if given is None and not wanted and not default_path().exists():
        return None
    store = Store(connect(given))
    if given is None and not wanted and not store.in_use():
        store.close()
        return None
    return Accounts(store)


def provider(signing_in: OpenIdOptions) -> Provider | None:
    """Raises: SwarmError: the options do not fit together."""
    if signing_in.openid is None:
        if signing_in != OpenIdOptions(url=signing_in.url):
            raise SwarmError("--openid-... are of no use without --openid URL", 2)
        return None
    return provider_of(
        signing_in.openid,
        signing_in.openid_client_id,
        signing_in.openid_client_secret,
        signing_in.openid_owner,
        signing_in.openid_admit,
    )


def sign_in_of(wanted: Provider | None, accounts: Accounts | None, url: str) -> SignIn | None:
    return SignIn(wanted, accounts, url) if wanted is not None and accounts is not None else None


def can_get_in(accounts: Accounts | None, signing_in: OpenIdOptions) -> bool:
    """Whether a person has a key that is good, or can sign in."""
    if accounts is None:
        return False
    now, keys = time.time(), accounts.store.keys()
    return signing_in.openid is not None or any(key.state(now) == "good" for key in keys)


def origins_of(given: tuple[str, ...]) -> tuple[str, ...]:
    """Raises: SwarmError: one is no origin of a web page."""
    for each in given:
        if not _ORIGIN.fullmatch(each):
            raise SwarmError(f"--allow-origin {each}: name the page's origin, such as https://app.example.org", 2)
    return given
