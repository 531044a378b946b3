"""The console's side of the gateway: the swarm as it is, what happens in it, and join tokens for further machines."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from openai_api.console.events import SwarmEvent, happened
from openai_api.errors import ApiError, too_many_requests
from openai_api.generation.generation import Answer, sse
from openai_api.http.auth import is_loopback
from routing.directory.admin import Administrator
from routing.errors import DirectoryError
from routing.relay.rules import is_relayed
from routing.security import AdminKey, short_id
from routing.view import View
from swarm import Notice, Routed, ServedModel
from swarm.cli.status import status_json
from swarm.client.driver import Link
from swarm.models.catalogue import CATALOGUE

Json = dict[str, Any]
LOOK = 0.25  # s between two looks at what the directories say
FIGURES = 1.0  # s between two reports where only figures have changed
QUIET = 15.0  # s after which a silent stream shows that it lives
WATCHERS = 64  # streams of events at the same time
PAST = 200  # happenings that are kept for newcomers
ANSWERS = 512  # of which the route is kept; nothing else of them is
LONGEST_INVITATION = 7 * 86400.0  # s


class ConsoleSource(Protocol):
    """Console source: what the console needs of the swarm; `swarm.AsyncSwarmClient` offers it."""

    @property
    def view(self) -> View: ...

    def models(self) -> Sequence[ServedModel]: ...

    async def links(self) -> Mapping[str, Link]: ...


class Console:
    """Console of one event loop.

    Args:
        key: makes join tokens; None: they cannot be made here.
        clock: seconds since the epoch.
    """

    def __init__(
        self, source: ConsoleSource, key: AdminKey | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._source = source
        self._key = key
        self._clock = clock
        self._past: deque[Json] = deque(maxlen=PAST)
        self._numbers = itertools.count(1)
        self._newest = 0
        self._state: Json = {}
        self._told = asyncio.Condition()
        self._watchers = 0
        self._answers: OrderedDict[str, tuple[str, list[Notice]]] = OrderedDict()

    async def watch(self) -> None:
        """Keep up with the swarm, for ever. What is there already when this begins has not happened."""
        models, view = list(self._source.models()), self._source.view
        reported = 0.0
        while True:
            current, now = self._source.view, list(self._source.models())
            news = happened(models, now, view, current)
            if news or self._clock() - reported >= FIGURES:
                models, view, reported = now, current, self._clock()
                await self._tell(await self.snapshot() if self._watchers else self._state, news)
            await asyncio.sleep(LOOK)

    async def _tell(self, state: Json, news: Sequence[SwarmEvent]) -> None:
        async with self._told:
            for happening in news:
                self._newest = next(self._numbers)
                entry = msgspec.to_builtins(happening)
                self._past.append({"number": self._newest, "at": self._clock(), **entry})
            if news or state != self._state:
                self._state = state
                self._told.notify_all()

    @property
    def _may_invite(self) -> bool:
        return self._key is not None and self._key.directory in self._source.view.directories

    async def snapshot(self) -> Json:
        """The swarm as it is: models, servers and how this gateway reaches them, directories and routers."""
        links = await self._source.links()
        found = status_json(self._source.models(), self._source.view)
        for model in found["models"]:
            model["fetchable"] = model["name"] in CATALOGUE or "/" in model["name"]
            for server in model["servers"]:
                link = links.get(server["key"])
                server["id"] = short_id(server["key"])
                server["round_trip"] = link.round_trip if link else None
                server["relayed"] = link.relayed if link else all(map(is_relayed, server["addresses"]))
        addresses = [address for each in found["directories"] for address in each["addresses"]]
        found["can_invite"] = self._may_invite
        found["local_only"] = all(is_loopback(address.rpartition(":")[0]) for address in addresses)
        return found

    async def events(self, invites: bool = True, quiet: float = QUIET) -> AsyncGenerator[bytes, None]:
        """What has happened so far and the swarm as it is, then every change.

        Args:
            invites: whether the watcher may make join tokens.

        Raises:
            ApiError: too many are watching already.
        """
        if self._watchers >= WATCHERS:
            raise too_many_requests(30, f"{WATCHERS} pages watch the swarm, which is the limit")
        self._watchers += 1
        try:
            state = self._state = await self.snapshot()
            seen = self._newest
            yield sse(list(self._past), "past")
            yield sse(seen_by(state, invites), "swarm")
            while True:
                try:
                    async with asyncio.timeout(quiet), self._told:
                        await self._told.wait_for(lambda: self._newest > seen or self._state != state)  # noqa: B023
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                news, seen, state = [each for each in self._past if each["number"] > seen], self._newest, self._state
                for each in news:
                    yield sse(each, "happened")
                yield sse(seen_by(state, invites), "swarm")
        finally:
            self._watchers -= 1

    def remember(self, answer: Answer) -> None:
        """Keep which model makes the answer and what happens on the way, none of its text; until there are too many."""
        self._answers[answer.id] = answer.model, answer.notices
        while len(self._answers) > ANSWERS:
            self._answers.popitem(last=False)

    def route(self, answer: str) -> Json:
        """Raises: ApiError: this gateway knows no such answer, or not any longer."""
        found = self._answers.get(answer)
        if found is None:
            raise ApiError(404, f"This gateway does not know who computed {answer!r}, or not any longer.")
        model, notices = found
        names = {server.key: server.name for server in self._source.view.servers.values()}
        names |= {key: member.name for key, member in self._source.view.members.items() if key not in names}
        return {
            "id": answer,
            "model": model,
            "routes": [
                [
                    {"key": hop.peer, "name": names.get(hop.peer, ""), "start": hop.start, "end": hop.end}
                    for hop in notice.hops
                ]
                for notice in notices
                if isinstance(notice, Routed)
            ],
            "notices": [notice.text for notice in notices if not isinstance(notice, Routed)],
        }

    async def invite(self, seconds: float, uses: int) -> Json:
        """A new join token.

        Raises:
            ApiError: this gateway may not make any, or the directory refuses.
        """
        if self._key is None or not self._may_invite:
            message = "This gateway has no admin key of this swarm. Run 'swarm token create' where the directory runs."
            raise ApiError(403, message, code="no_admin_key")
        try:
            token = await asyncio.to_thread(_issue, self._key, min(seconds, LONGEST_INVITATION), uses)
        except DirectoryError as error:
            raise ApiError(503, f"No token could be made: {error}", code="no_directory") from error
        return {"token": token, "expires": self._clock() + min(seconds, LONGEST_INVITATION), "uses": uses}


def seen_by(state: Json, invites: bool) -> Json:
    """The swarm as it is shown to a caller who may make join tokens, or may not."""
    return state if invites else {**state, "can_invite": False}


def _issue(key: AdminKey, seconds: float, uses: int) -> str:
    with Administrator(key) as admin:
        return str(admin.issue(seconds, uses)[0])
