"""What every peer knows of the swarm: an immutable view, and how the directory's messages keep a copy of it.

The feed follows the Clone pattern (https://zguide.zeromq.org/docs/chapter5/): the whole state, then numbered changes.
It comes over the directory's one ROUTER, not over a PUB socket, so that a firewall needs one open port and the feed is
authorised like everything else. The state comes as several `Snapshot`s of bounded size under one number, which `Done`
ends. A gap in the numbers means that a change was missed; the watcher then asks for the state again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import msgspec

from routing import wire

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """Members, servers and routers by public key. The mappings are never changed in place."""

    members: Mapping[str, wire.Member] = field(default_factory=dict)
    servers: Mapping[str, wire.Server] = field(default_factory=dict)
    routers: Mapping[str, wire.Router] = field(default_factory=dict)

    def serving(self, model: str) -> tuple[wire.Server, ...]:
        """The servers of one model."""
        return tuple(server for server in self.servers.values() if server.model == model)


def apply(view: View, event: wire.Event) -> View:
    """The view after `event`."""
    match event:
        case wire.Joined(member):
            return replace(view, members={**view.members, member.key: member})
        case wire.Updated(server):
            return replace(view, servers={**view.servers, server.key: server})
        case wire.Expelled(key):
            return replace(view, members=_without(view.members, key))
        case wire.RouterUpdated(router):
            return replace(view, routers={**view.routers, router.key: router})
        case wire.Gone(key):
            return replace(view, servers=_without(view.servers, key), routers=_without(view.routers, key))


def _without(mapping: Mapping[str, T], key: str) -> Mapping[str, T]:
    return {other: value for other, value in mapping.items() if other != key}


def only_figures_differ(old: wire.Server, new: wire.Server) -> bool:
    """Whether two announcements differ at most in what changes all the time: load, speed, free memory."""
    return old == msgspec.structs.replace(
        new,
        throughput=old.throughput,
        kv_free=old.kv_free,
        sessions=old.sessions,
        memory=old.memory,
        memory_used=old.memory_used,
    )


class Mirror:
    """A watcher's copy of the directory's view. The last complete view stays until a newer one is complete."""

    def __init__(self) -> None:
        self.view = View()
        self._request = -1
        self._sequence: int | None = None  # of the last change in the view; None: the state is awaited
        self._parts_sequence: int | None = None
        self._members: dict[str, wire.Member] = {}
        self._servers: dict[str, wire.Server] = {}
        self._routers: dict[str, wire.Router] = {}

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
                    self._parts_sequence = sequence
                    self._members, self._servers, self._routers = {}, {}, {}
                self._members.update((member.key, member) for member in message.members)
                self._servers.update((server.key, server) for server in message.servers)
                self._routers.update((router.key, router) for router in message.routers)
            case wire.Done(request) if request == self._request and self._parts_sequence is not None:
                self._sequence, self._parts_sequence = self._parts_sequence, None
                self.view = View(self._members, self._servers, self._routers)
                return "changed"
            case wire.Change(sequence, event) if self._sequence is not None and sequence > self._sequence:
                if sequence != self._sequence + 1:
                    return "gap"
                self._sequence = sequence
                self.view = apply(self.view, event)
                return "changed"
        return "unchanged"
