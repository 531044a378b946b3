"""Access: lets people in by their keys, holds them to their limits, and counts what they use."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import NamedTuple, ParamSpec, Self, TypeVar

from openai_api.accounts import key_format
from openai_api.accounts.database import AccountsError
from openai_api.accounts.limits import MINUTE, LimitExceeded, crowding, day_of, refusal
from openai_api.accounts.principals import Key, Principal, of_person
from openai_api.accounts.store import Store
from openai_api.accounts.usage import Asked, WorkRecord, plain
from openai_api.accounts.usage_writer import UsageWriter
from openai_api.errors import SERVER, ApiError

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

FRESH = 2.0  # s for which a key is not looked up again: so long it may work after another program has revoked it
STALE = 60.0  # s for which a key that was good stays so while the database cannot be asked
PAUSE = 5.0  # s for which a database that has failed is not asked about them
KEPT = 10_000  # keys that are remembered


class _Known(NamedTuple):
    key: Key
    read: float


class Accounts:
    """Accounts of one event loop; the database is asked in threads of its own.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self.clock = clock
        self._threads = ThreadPoolExecutor(4, "accounts")
        self.recorder = UsageWriter(lambda tally: self.do(store.record, tally))
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._recent: dict[str, deque[float]] = {}
        self._open: dict[str, int] = {}
        self._tokens: dict[tuple[str, str], int] = {}
        self._failed = -PAUSE

    async def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Let the store do something, in a thread. Raises: AccountsError."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    async def close(self) -> None:
        """Write what is not yet written, as far as the database lets it."""
        if not await self.recorder.flush():
            log.error("usage since the last writing is lost: the database takes nothing")
        self._threads.shutdown(wait=True)
        self.store.close()

    def forget(self, id: str) -> None:
        """A key has changed: look it up again."""
        self._known.pop(id, None)

    def forget_all(self) -> None:
        self._known.clear()

    # --- who it is ---------------------------------------------------------------------------------------------------

    async def by_key(self, text: str) -> Principal:
        """Raises: ApiError: the key is unknown, expired or revoked."""
        parsed = key_format.parse(text)
        key = await self._find(parsed.id) if parsed else None
        # What has become of a key is told only to those who have all of it.
        if parsed is None or key is None or not key_format.proves(parsed.secret, key.digest):
            raise unauthorised("This API key is unknown here.")
        match key.state(self.clock()):
            case "revoked":
                raise unauthorised(f"The API key '{key.name}' was revoked.", "revoked_api_key")
            case "expired":
                raise unauthorised(f"The API key '{key.name}' has expired.", "expired_api_key")
            case "removed":
                raise unauthorised(f"The owner of the API key '{key.name}' has no account here.", "revoked_api_key")
        self.recorder.waiting.last_used[key.id] = self.clock()
        return of_person(key.person, key)

    async def _find(self, id: str) -> Key | None:
        now, known = self.clock(), self._known.get(id)
        age = now - known.read if known else STALE
        failed = 0 <= now - self._failed < PAUSE
        if known is not None and 0 <= age < (STALE if failed else FRESH):
            return known.key
        try:
            key = await self.do(self.store.key, id)
        except AccountsError as error:
            self._failed = now
            if known is not None and 0 <= age < STALE:
                return known.key
            raise unavailable(error) from error
        self._known.pop(id, None)
        if key is not None:
            self._known[id] = _Known(key, now)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return key

    async def by_visit(self, token: str) -> Principal | None:
        """Who has signed in with this browser; None: no person, or not any longer."""
        try:
            person = await self.do(self.store.visitor, token, self.clock())
        except AccountsError as error:
            raise unavailable(error) from error
        return of_person(person) if person else None

    # --- how much ----------------------------------------------------------------------------------------------------

    async def admit(self, key: Key) -> None:
        """Begin a request. Raises: ApiError: status 429."""
        now = self.clock()
        recent = self._recent.setdefault(key.id, deque())
        while recent and not now - MINUTE < recent[0] <= now:
            recent.popleft()
        tokens = 0 if key.limits.tokens_per_day is None else await self._tokens_today(key.id, day_of(now))
        if refused := refusal(key.limits, recent, tokens, now):
            raise limited(key, refused)
        if key.limits.requests_per_minute is not None:
            recent.append(now)

    async def _tokens_today(self, key: str, day: str) -> int:
        try:
            written = await self.do(self.store.tokens, day, key)
        except AccountsError:
            written = self._tokens.get((day, key), 0)
        if len(self._tokens) >= KEPT:
            self._tokens.clear()
        self._tokens[day, key] = written
        return written + self.recorder.tokens(day, key)

    def occupy(self, key: Key, held: int, wanted: int) -> None:
        """A request that has `held` sessions wants `wanted`. Raises: ApiError: the key may not have so many at once."""
        others = self._open.get(key.id, 0) - held
        if refused := crowding(key.limits, others, wanted):
            raise limited(key, refused)
        self._open[key.id] = others + wanted

    def leave(self, key: Key, held: int) -> None:
        left = self._open.pop(key.id, 0) - held
        if left > 0:
            self._open[key.id] = left

    def record(self, caller: Principal, model: str, prompt: int, work: WorkRecord, names: Mapping[str, str]) -> None:
        """Count a request that has ended, however it did, if the swarm has computed anything for it."""
        day, model = day_of(self.clock()), plain(model)
        person = caller.person.id if caller.person else 0
        asked = Asked(day, person, caller.key.id if caller.key else "", model)
        tally = self.recorder.waiting
        tally.add(asked, 1, prompt, work.generated)
        tally.add_served(day, model, work.by_server, names)


class MeteredRequest:
    """A request while it is answered. Without accounts it allows everything and counts nothing.

    Attributes:
        prompt: tokens of its prompts.
        work: what the swarm does for it.
    """

    def __init__(
        self, accounts: Accounts | None, caller: Principal, model: str, names: Callable[[], Mapping[str, str]]
    ) -> None:
        self._accounts = accounts
        self._caller = caller
        self._model = model
        self._names = names
        self._sessions = 0
        self.prompt = 0
        self.work = WorkRecord()

    async def __aenter__(self) -> Self:
        """Raises: ApiError: the key may not use the model, or not now."""
        key = self._caller.key
        if not self._caller.allows(self._model):
            message = f"This API key may not use the model '{self._model}'."
            raise ApiError(403, message, param="model", code="model_not_allowed")
        if self._accounts is not None and key is not None:
            await self._accounts.admit(key)
            self.occupy(1)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._accounts is None:
            return
        if self._caller.key is not None:
            self._accounts.leave(self._caller.key, self._sessions)
        if self.work.begun:
            self._accounts.record(self._caller, self._model, self.prompt, self.work, self._names())

    def occupy(self, sessions: int) -> None:
        """It needs so many sessions at the same time. Raises: ApiError: the key may not have so many."""
        if self._accounts is not None and self._caller.key is not None and sessions > self._sessions:
            self._accounts.occupy(self._caller.key, self._sessions, sessions)
            self._sessions = sessions


def unauthorised(message: str, code: str = "invalid_api_key") -> ApiError:
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})


def unavailable(error: AccountsError) -> ApiError:
    log.error("%s", error)
    message = "The gateway cannot look up API keys now. Try again later."
    return ApiError(503, message, kind=SERVER, code="accounts_unavailable", headers={"Retry-After": "5"})


def limited(key: Key, refused: LimitExceeded) -> ApiError:
    if not refused.wait:
        return ApiError(400, f"The API key '{key.name}' is limited: {refused.why}.", code="too_many_sessions")
    message = f"The API key '{key.name}' is limited: {refused.why}. Try again in {refused.wait} s."
    headers = {"Retry-After": str(refused.wait)}
    return ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers)
