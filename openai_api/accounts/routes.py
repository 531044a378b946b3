"""The routes of keys, members and usage. They serve the page and may change with it: the API's document omits them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from openai_api.accounts.access import Accounts, unavailable
from openai_api.accounts.database import AccountsError
from openai_api.accounts.limits import DAY, MOST_REQUESTS, KeyLimits, day_of
from openai_api.accounts.principals import SCOPES, Key, Person, Principal
from openai_api.errors import ApiError, invalid
from swarm.errors import SwarmError

router = APIRouter(prefix="/api", include_in_schema=False)
P = ParamSpec("P")
T = TypeVar("T")

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")]
MOST_TOKENS = 10**15


class NewKey(BaseModel):
    """`expires` in seconds from now; `person`: whose it is, by default the caller's own."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    person: Name | None = None
    scopes: Annotated[list[Literal["inference", "console", "admin"]], Field(min_length=1, max_length=3)]
    models: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=100)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=MOST_REQUESTS)] | None = None
    tokens_per_day: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    sessions: Annotated[int, Field(ge=1, le=10_000)] | None = None
    expires: Annotated[float, Field(ge=60, le=3650 * DAY)] | None = None


class NewMember(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name
    email: Annotated[str, Field(max_length=320, pattern=r"^[^@\s]+@[^@\s]+$")] | None = None
    role: Literal["owner", "member"] = "member"


class RoleChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["owner", "member"]


@router.get("/account")
async def account(request: Request) -> Response:
    """Who asks, and what the page may offer. Open to everybody, so it says little to those whom nobody knows."""
    state = request.app.state
    caller: Principal | None = request.state.caller
    found: dict[str, Any] = {
        "accounts": state.accounts is not None,
        "sign_in": "/api/sign-in" if state.sign_in is not None else None,
        "known": caller is not None,
    }
    if caller is not None:
        found |= {
            "person": caller.person.shown() if caller.person else None,
            "scopes": [scope for scope in SCOPES if scope in caller.scopes],
            "signed_in": caller.person is not None and caller.key is None,
            "invites": caller.invites,
        }
    return _json(found)


@router.get("/keys")
async def keys(request: Request) -> Response:
    """An owner's caller sees everybody's, another only the own."""
    accounts, person = _person(request)
    await accounts.recorder.flush()  # when they were last used
    found = await _done(accounts, accounts.store.keys, None if person.role == "owner" else person.id)
    now = accounts.clock()
    return _json({"keys": [key.shown(now) for key in found]})


@router.post("/keys")
async def create_key(body: NewKey, request: Request) -> Response:
    """The only answer that ever holds the key itself."""
    accounts, person = _person(request)
    caller: Principal = request.state.caller
    if not set(body.scopes) <= caller.scopes:
        raise ApiError(403, "A key can give no more scopes than the caller has.", code="insufficient_scope")
    whose = person
    if body.person is not None and body.person not in (person.name, person.email):
        _require_owner(person)
        found = await _done(accounts, accounts.store.person, body.person)
        if found is None:
            raise invalid(f"There is no member {body.person!r}.", "person")
        whose = found
    now = accounts.clock()
    limits = KeyLimits(body.requests_per_minute, body.tokens_per_day, body.sessions)
    expires = None if body.expires is None else now + body.expires
    key, text = await _done(
        accounts, accounts.store.add_key, whose, body.name, body.scopes, now, body.models, limits, expires
    )
    return _json({**key.shown(now), "key": str(text)})


@router.delete("/keys/{id}")
async def revoke_key(id: str, request: Request) -> Response:
    accounts, person = _person(request)
    found: Key | None = await _done(accounts, accounts.store.key, id)
    if found is None or (person.role != "owner" and found.person.id != person.id):
        raise ApiError(404, "There is no such key.", code="key_not_found")
    await _done(accounts, accounts.store.revoke_key, id, accounts.clock())
    accounts.forget(id)
    return Response(status_code=204)


@router.get("/members")
async def members(request: Request) -> Response:
    accounts, person = _person(request)
    _require_owner(person)
    found = await _done(accounts, accounts.store.people)
    return _json({"members": [each.shown() for each in found]})


@router.post("/members")
async def add_member(body: NewMember, request: Request) -> Response:
    """With an e-mail address: who signs in with it is this member."""
    accounts, person = _person(request)
    _require_owner(person)
    email = body.email.lower() if body.email else None
    made = await _done(accounts, accounts.store.add_person, body.name, body.role, accounts.clock(), email)
    return _json(made.shown())


@router.patch("/members/{id}")
async def change_member(id: int, body: RoleChange, request: Request) -> Response:
    accounts, person = _person(request)
    _require_owner(person)
    await _done(accounts, accounts.store.set_role, id, body.role)
    accounts.forget_all()
    return Response(status_code=204)


@router.delete("/members/{id}")
async def remove_member(id: int, request: Request) -> Response:
    """Their keys are refused from now on."""
    accounts, person = _person(request)
    _require_owner(person)
    await _done(accounts, accounts.store.remove_person, id, accounts.clock())
    accounts.forget_all()
    return Response(status_code=204)


@router.get("/usage")
async def usage(request: Request, days: Annotated[int, Query(ge=1, le=366)] = 30) -> Response:
    """Of the last days, today included: an owner's caller sees everything, another only the own use."""
    accounts, person = _person(request)
    await accounts.recorder.flush()
    since = day_of(accounts.clock() - (days - 1) * DAY)
    if person.role != "owner":
        used = await _done(accounts, accounts.store.used, since, person.id)
        return _json({"since": since, "keys": used, "servers": None})
    used = await _done(accounts, accounts.store.used, since)
    return _json({"since": since, "keys": used, "servers": await _done(accounts, accounts.store.served, since)})


def _person(request: Request) -> tuple[Accounts, Person]:
    """Raises: ApiError: there are no accounts, or the caller has none."""
    accounts: Accounts | None = request.app.state.accounts
    if accounts is None:
        message = (
            "There are no accounts here: make a key with 'swarm key create NAME --owner', then start the gateway again."
        )
        raise ApiError(404, message, code="no_accounts")
    person = request.state.caller.person
    if person is None:
        raise ApiError(403, "The gateway's own key has no account: use a key of a member.", code="no_account")
    return accounts, person


def _require_owner(person: Person) -> None:
    if person.role != "owner":
        raise ApiError(403, "Only owners may do this.", code="owners_only")


async def _done(accounts: Accounts, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await accounts.do(work, *args, **kwargs)
    except AccountsError as error:
        raise unavailable(error) from error
    except SwarmError as error:
        raise ApiError(409, str(error), code="conflict") from error


def _json(content: Any) -> Response:
    return JSONResponse(content, headers={"Cache-Control": "no-store"})
