"""View: what every peer knows of the swarm; an immutable view, and how the directory's messages keep a copy of it.

The feed follows the Clone pattern (https://zguide.zeromq.org/docs/chapter5/): the whole state, then numbered changes.
It comes over the directory's one ROUTER, not over a PUB socket, so that a firewall needs one open port and the feed is
authorised like everything else. The state comes as several `Snapshot`s of bounded size under one number, which `Done`
ends. A gap in the numbers means that a change was missed; the watcher then asks for the state again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import msgspec

from routing import wire

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """Members, servers, routers and directories by key, and who was expelled. Nothing is ever changed in place."""

    members: Mapping[str, wire.Member] = field(default_factory=dict)
    servers: Mapping[str, wire.ServerInfo] = field(default_factory=dict)
    expelled: frozenset[str] = frozenset()
    directories: Mapping[str, wire.DirectoryInfo] = field(default_factory=dict)
    routers: Mapping[str, wire.RouterInfo] = field(default_factory=dict)

    def serving(self, model: str, protocol: str = "ring") -> tuple[wire.ServerInfo, ...]:
        """The servers of one model."""
        servers = self.servers.values()
        return tuple(server for server in servers if (server.model, server.protocol) == (model, protocol))


def apply(view: View, event: wire.Event) -> View:
    """The view after `event`."""
    match event:
        case wire.MemberJoined(member):
            return replace(view, members={**view.members, member.key: member})
        case wire.ServerUpdated(server):
            return replace(view, servers={**view.servers, server.key: server})
        case wire.MemberExpelled(key):
            return replace(
                view,
                members=_without(view.members, key),
                expelled=view.expelled | {key},
                directories=_without(view.directories, key),
            )
        case wire.PeerGone(key):
            return replace(view, servers=_without(view.servers, key), routers=_without(view.routers, key))
        case wire.RouterUpdated(router):
            return replace(view, routers={**view.routers, router.key: router})
        case wire.DirectoryListed(site):
            return replace(view, directories={**view.directories, site.key: site})


def union(current: Iterable[View], past: Iterable[View] = ()) -> View:
    """What several directories say together. Whom one has expelled is nowhere; of a server the latest record holds.

    Args:
        current: the views of the directories that are connected.
        past: the last views of others. They tell of members and directories, but not of servers and routers.
    """
    current = tuple(current)
    every = (*current, *past)
    expelled = frozenset[str]().union(*(view.expelled for view in every))
    members: dict[str, wire.Member] = {}
    servers: dict[str, wire.ServerInfo] = {}
    directories: dict[str, wire.DirectoryInfo] = {}
    for view in every:
        for key, member in view.members.items():
            if key not in expelled:
                members.setdefault(key, member)
        for key, site in view.directories.items():
            if key not in expelled and (key not in directories or site.updated > directories[key].updated):
                directories[key] = site
    for view in current:
        for key, server in view.servers.items():
            if key not in expelled and (key not in servers or server.revision > servers[key].revision):
                servers[key] = server
    routers = {key: router for view in current for key, router in view.routers.items() if key not in expelled}
    return View(members, servers, expelled, directories, routers)


def _without(mapping: Mapping[str, T], key: str) -> Mapping[str, T]:
    return {other: value for other, value in mapping.items() if other != key}


def only_figures_differ(old: wire.ServerInfo, new: wire.ServerInfo) -> bool:
    """Whether two announcements differ at most in what changes all the time: load, speed, free memory."""
    return old == msgspec.structs.replace(
        new,
        throughput=old.throughput,
        load=old.load,
        memory=old.memory,
        revision=old.revision,
    )


class Mirror:
    """A watcher's copy of the directory's view. The last complete view stays until a newer one is complete."""

    def __init__(self) -> None:
        self.view = View()
        self._request = -1
        self._sequence: int | None = None  # of the last change in the view; None: the state is awaited
        self._parts_sequence: int | None = None
        self._parts: list[wire.Snapshot] = []

    @property
    def complete(self) -> bool:
        """Whether the view is that of the watch under way."""
        return self._sequence is not None

    def watch(self, request: int) -> None:
        """A `Watch` with this number is sent: what belongs to an earlier one is out of date."""
        self._request = request
        self._sequence = self._parts_sequence = None

    def receive(self, message: wire.AnyMessage) -> Literal["changed", "unchanged", "gap"]:
        """Take in a `Snapshot`, the `Done` that ends it, or a `Change`. `gap`: watch again."""
        match message:
            case wire.Snapshot(request, sequence) if request == self._request:
                if sequence != self._parts_sequence:
                    # The first part, or the directory starts over because it could not send them all.
                    self._parts_sequence, self._parts = sequence, []
                self._parts.append(message)
            case wire.Done(request) if request == self._request and self._parts_sequence is not None:
                self._sequence, self._parts_sequence = self._parts_sequence, None
                self.view = View(
                    {member.key: member for part in self._parts for member in part.members},
                    {server.key: server for part in self._parts for server in part.servers},
                    frozenset(key for part in self._parts for key in part.expelled),
                    {site.key: site for part in self._parts for site in part.directories},
                    {router.key: router for part in self._parts for router in part.routers},
                )
                self._parts = []
                return "changed"
            case wire.Change(sequence, event) if self._sequence is not None and sequence > self._sequence:
                if sequence != self._sequence + 1:
                    return "gap"
                self._sequence = sequence
                self.view = apply(self.view, event)
                return "changed"
        return "unchanged"
