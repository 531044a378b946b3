"""Routes of accounts: keys, members, usage, signing in. They serve the page and may change with it, so the API's
document omits them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from openai_api.accounts.access import Accounts, unavailable
from openai_api.accounts.database import AccountsError
from openai_api.accounts.limits import DAY, MOST_REQUESTS, KeyLimits, day_of
from openai_api.accounts.principals import SCOPES, Key, Person
from openai_api.accounts.sign_in import BEGIN, CALLBACK, END, SignIn
from openai_api.errors import ApiError, invalid
from openai_api.http.scopes import OPEN, ScopedEndpoint, scoped
from openai_api.routes.state import Caller, MaybeCaller, State
from swarm.errors import SwarmError

open_router = APIRouter(prefix="/api", include_in_schema=False, route_class=scoped(OPEN))
router = APIRouter(prefix="/api", include_in_schema=False, route_class=scoped("console"))
admin_router = APIRouter(prefix="/api", include_in_schema=False, route_class=scoped("admin"))
P = ParamSpec("P")
T = TypeVar("T")

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")]
MOST_TOKENS = 10**15


class NewKey(BaseModel):
    """New key: `expires` in seconds from now; `person`: the member that it is for, by default the caller."""

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
    """New member."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    email: Annotated[str, Field(max_length=320, pattern=r"^[^@\s]+@[^@\s]+$")] | None = None
    role: Literal["owner", "member"] = "member"


class RoleChange(BaseModel):
    """Change of a member's role."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["owner", "member"]


@dataclass(frozen=True)
class MemberRequest:
    """Member of the gateway that makes a request, and the accounts that it is about."""

    accounts: Accounts
    person: Person
    scopes: frozenset[str]

    @property
    def is_owner(self) -> bool:
        return self.person.role == "owner"

    def require_owner(self) -> None:
        """Raises: ApiError: the member is no owner."""
        if not self.is_owner:
            raise ApiError(403, "Only owners may do this.", code="owners_only")

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of work with the database, in a thread. Raises: ApiError: it cannot be done."""
        try:
            return await self.accounts.do(work, *args, **kwargs)
        except AccountsError as error:
            raise unavailable(error) from error
        except SwarmError as error:
            raise ApiError(409, str(error), code="conflict") from error


def member_of(state: State, caller: Caller) -> MemberRequest:
    """Raises: ApiError: there are no accounts, or the caller has none."""
    if state.accounts is None:
        message = (
            "There are no accounts here: make a key with 'swarm key create NAME --owner', then start the gateway again."
        )
        raise ApiError(404, message, code="no_accounts")
    if caller.person is None:
        raise ApiError(403, "The gateway's own key has no account: use a key of a member.", code="no_account")
    return MemberRequest(state.accounts, caller.person, caller.scopes)


def owner_of(member: Annotated[MemberRequest, Depends(member_of)]) -> MemberRequest:
    """Raises: ApiError: the caller is no owner."""
    member.require_owner()
    return member


ByMember = Annotated[MemberRequest, Depends(member_of)]
ByOwner = Annotated[MemberRequest, Depends(owner_of)]


@open_router.get("/account")
async def account(state: State, caller: MaybeCaller) -> Response:
    """The caller, and what the page may offer. It needs no key, so it says little to a caller without one."""
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


@admin_router.get("/keys")
async def keys(member: ByMember) -> Response:
    """The keys of all, for an owner; for another member its own."""
    accounts = member.accounts
    await accounts.recorder.flush()  # when they were last used
    found = await member.do(accounts.store.keys, None if member.is_owner else member.person.id)
    now = accounts.clock()
    return _json({"keys": [key.shown(now) for key in found]})


@admin_router.post("/keys")
async def create_key(body: NewKey, member: ByMember) -> Response:
    """The only answer that ever holds the key itself."""
    accounts = member.accounts
    if not set(body.scopes) <= member.scopes:
        raise ApiError(403, "A key can give no more scopes than the caller has.", code="insufficient_scope")
    owner = member.person
    if body.person is not None and body.person not in (owner.name, owner.email):
        member.require_owner()
        found = await member.do(accounts.store.person, body.person)
        if found is None:
            raise invalid(f"There is no member {body.person!r}.", "person")
        owner = found
    now = accounts.clock()
    limits = KeyLimits(body.requests_per_minute, body.tokens_per_day, body.sessions)
    expires = None if body.expires is None else now + body.expires
    key, text = await member.do(
        accounts.store.add_key, owner, body.name, body.scopes, now, body.models, limits, expires
    )
    return _json({**key.shown(now), "key": str(text)})


@admin_router.delete("/keys/{id}")
async def revoke_key(id: str, member: ByMember) -> Response:
    accounts = member.accounts
    found: Key | None = await member.do(accounts.store.key, id)
    if found is None or (not member.is_owner and found.person.id != member.person.id):
        raise ApiError(404, "There is no such key.", code="key_not_found")
    await member.do(accounts.store.revoke_key, id, accounts.clock())
    accounts.forget(id)
    return Response(status_code=204)


@admin_router.get("/members")
async def members(owner: ByOwner) -> Response:
    found = await owner.do(owner.accounts.store.people)
    return _json({"members": [each.shown() for each in found]})


@admin_router.post("/members")
async def add_member(body: NewMember, owner: ByOwner) -> Response:
    """With an e-mail address: a person who signs in with it is this member."""
    email = body.email.lower() if body.email else None
    accounts = owner.accounts
    made = await owner.do(accounts.store.add_person, body.name, body.role, accounts.clock(), email)
    return _json(made.shown())


@admin_router.patch("/members/{id}")
async def change_member(id: int, body: RoleChange, owner: ByOwner) -> Response:
    await owner.do(owner.accounts.store.set_role, id, body.role)
    owner.accounts.forget_all()
    return Response(status_code=204)


@admin_router.delete("/members/{id}")
async def remove_member(id: int, owner: ByOwner) -> Response:
    """Their keys are refused from now on."""
    await owner.do(owner.accounts.store.remove_person, id, owner.accounts.clock())
    owner.accounts.forget_all()
    return Response(status_code=204)


@router.get("/usage")
async def usage(member: ByMember, days: Annotated[int, Query(ge=1, le=366)] = 30) -> Response:
    """Use of the last days, today included: of all for an owner, for another member its own."""
    accounts = member.accounts
    await accounts.recorder.flush()
    since = day_of(accounts.clock() - (days - 1) * DAY)
    if not member.is_owner:
        used = await member.do(accounts.store.used, since, member.person.id)
        return _json({"since": since, "keys": used, "servers": None})
    used = await member.do(accounts.store.used, since)
    return _json({"since": since, "keys": used, "servers": await member.do(accounts.store.served, since)})


def sign_in_routes(sign_in: SignIn) -> list[ScopedEndpoint]:
    """The routes by which a browser signs in and out."""
    keeping = [sign_in.session]
    return [
        ScopedEndpoint(BEGIN, sign_in.begin, scope=OPEN, methods=["GET"], middleware=keeping),
        ScopedEndpoint(CALLBACK, sign_in.finish, scope=OPEN, methods=["GET"], middleware=keeping),
        ScopedEndpoint(END, sign_in.end, scope="console", methods=["POST"]),
    ]


def _json(content: Any) -> Response:
    return JSONResponse(content, headers={"Cache-Control": "no-store"})
