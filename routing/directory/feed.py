"""Feed: tells watchers what a directory's view is and what changes (see `routing.view`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import zmq

from routing import wire
from routing.directory.registry import Events, RequestRefused
from routing.links import Listener
from routing.view import View

Entry = TypeVar("Entry", bound=msgspec.Struct)

PART = 1 << 20  # bytes of servers or members in one `Snapshot`
WATCHES = 8  # connections on which one peer may watch
MAX_WATCHERS = 10_000
FIGURES = 5000  # changes of mere figures that may be sent per second, over all watchers


@dataclass
class _Watcher:
    peer: str
    request: int
    behind: bool = False  # its queue was full: it needs the state again


class Feed:
    """Feed of changes to the watchers of a directory.

    Args:
        view: the directory's, now.
        most: watchers that are served; others are refused.
    """

    def __init__(self, listener: Listener, view: Callable[[], View], most: int = MAX_WATCHERS) -> None:
        self._listener = listener
        self._view = view
        self._most = most
        self._watchers: dict[bytes, _Watcher] = {}
        self._figures: dict[str, wire.ServerUpdated] = {}  # changes of mere figures that wait for their turn
        self._figures_at = 0.0
        self._sequence = 0

    def watch(self, peer: str, route: bytes, request: int) -> None:
        """Send the whole state along `route`, then every change.

        Raises:
            RequestRefused: there are too many watchers.
        """
        self._watchers.pop(route, None)
        routes = [known for known, watcher in self._watchers.items() if watcher.peer == peer]
        if len(routes) >= WATCHES:
            del self._watchers[routes[0]]
        if len(self._watchers) >= self._most:
            raise RequestRefused(
                wire.RefusalCode.FULL, f"this directory has {self._most} watchers, which is its limit", retry_after=10.0
            )
        self._watchers[route] = _Watcher(peer, request)
        self._send_state(route, self._watchers[route])

    def present(self) -> set[str]:
        """The watchers that are connected now."""
        ping = wire.encode(wire.Ping(0))
        for route, watcher in list(self._watchers.items()):
            self._send(route, watcher, ping)
        return {watcher.peer for watcher in self._watchers.values()}

    def publish(self, events: Events) -> None:
        for event in events:
            match event:
                case wire.ServerUpdated(server):
                    self._figures.pop(server.key, None)
                case wire.PeerGone(key):
                    self._figures.pop(key, None)
            self._broadcast(event)
            if isinstance(event, wire.MemberExpelled):  # it has heard so itself, and hears nothing more
                routes = [route for route, watcher in self._watchers.items() if watcher.peer == event.key]
                for route in routes:
                    del self._watchers[route]

    def publish_later(self, update: wire.ServerUpdated) -> None:
        """A change of mere figures; how often all hear of those depends on how many they are."""
        self._figures[update.server.key] = update

    def figures_due(self) -> float | None:
        """When `catch_up` has changes of figures to send."""
        return self._figures_at if self._figures else None

    def catch_up(self, now: float) -> None:
        """Send what is due, and the state again to those whose queues were full."""
        if self._figures and now >= self._figures_at:
            waiting, self._figures = self._figures, {}
            self._figures_at = now + len(waiting) * len(self._watchers) / FIGURES
            for event in waiting.values():
                self._broadcast(event)
        for route, watcher in list(self._watchers.items()):
            if watcher.behind:
                self._send_state(route, watcher)

    def _send_state(self, route: bytes, watcher: _Watcher) -> None:
        for message in (*self._snapshots(watcher.request), wire.Done(watcher.request)):
            if not self._send(route, watcher, wire.encode(message)):
                return
        watcher.behind = False

    def _snapshots(self, request: int) -> Iterator[wire.Snapshot]:
        view = self._view()
        directories, routers = tuple(view.directories.values()), tuple(view.routers.values())
        yield wire.Snapshot(request, self._sequence, (), (), (), directories, routers)
        keys = tuple(view.expelled)
        for at in range(0, len(keys), PART // 40):
            yield wire.Snapshot(request, self._sequence, (), (), expelled=keys[at : at + PART // 40])
        for members in parts(tuple(view.members.values())):
            yield wire.Snapshot(request, self._sequence, members, ())
        for servers in parts(tuple(view.servers.values())):
            yield wire.Snapshot(request, self._sequence, (), servers)

    def _broadcast(self, event: wire.Event) -> None:
        self._sequence += 1
        frames = wire.encode(wire.Change(self._sequence, event))
        for route, watcher in list(self._watchers.items()):
            if not watcher.behind:
                self._send(route, watcher, frames)

    def _send(self, route: bytes, watcher: _Watcher, frames: list[bytes | memoryview]) -> bool:
        """Send what is encoded once for all. A watcher that is gone is forgotten, one that does not read is noted."""
        try:
            self._listener.socket.send_multipart([route, *frames], zmq.NOBLOCK)
        except zmq.Again:
            watcher.behind = True
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._watchers.pop(route, None)
            return False
        return True


def parts(entries: Sequence[Entry]) -> Iterator[tuple[Entry, ...]]:
    """Cut so that a message of one part fits a frame."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        part.append(entry)
        size += len(msgspec.msgpack.encode(entry))
        if size >= PART:
            yield tuple(part)
            part, size = [], 0
    if part:
        yield tuple(part)
