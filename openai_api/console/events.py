"""Events: what has happened in a swarm between two looks at it, in words for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from routing import wire
from routing.view import View
from swarm import ServedModel

Severity = Literal["good", "plain", "bad"]


@dataclass(frozen=True)
class SwarmEvent:
    """Event in a swarm, in words for people.

    Attributes:
        kind: for programs: joined, ready, draining, moved, restarted, left, gap, complete, router, router-left,
            directory.
        server: the key of the server that it is about; empty where it is about none.
    """

    kind: str
    text: str
    mood: Severity = "plain"
    model: str = ""
    server: str = ""


def happened(before: Sequence[ServedModel], after: Sequence[ServedModel], old: View, new: View) -> list[SwarmEvent]:
    """Causes come before effects: a server is lost, then its blocks are missing."""
    known, now = _servers(before), _servers(after)
    happenings = [_left(server) for key, server in known.items() if key not in now]
    for key, server in now.items():
        happenings += _joined(server) if key not in known else _changed(known[key], server)
    gaps = {model.name: model.missing for model in before}
    for model in after:
        happenings += _coverage(model.name, gaps.pop(model.name, None), model.missing)
    happenings += [SwarmEvent("gap", f"{name} has no server left", "bad", name) for name in gaps]
    return [*happenings, *_places(old, new)]


def _servers(models: Iterable[ServedModel]) -> dict[str, wire.ServerInfo]:
    return {server.key: server for model in models for server in model.servers}


def _about(kind: str, server: wire.ServerInfo, text: str, mood: Severity = "plain") -> SwarmEvent:
    return SwarmEvent(kind, f"{server.name} {text}", mood, server.model, server.key)


def _blocks(server: wire.ServerInfo) -> str:
    return f"blocks {server.start}:{server.end} of {server.model}"


def _left(server: wire.ServerInfo) -> SwarmEvent:
    mood: Severity = "plain" if server.state == "draining" else "bad"
    return _about("left", server, f"left; it had {_blocks(server)}", mood)


def _joined(server: wire.ServerInfo) -> list[SwarmEvent]:
    if server.state == "ready":
        return [_about("ready", server, f"joined and serves {_blocks(server)}", "good")]
    return [_about("joined", server, f"joined and loads {_blocks(server)}")]


def _changed(old: wire.ServerInfo, new: wire.ServerInfo) -> Iterator[SwarmEvent]:
    if new.instance != old.instance:
        yield _about("restarted", new, "was started again")
    if (new.model, new.start, new.end) != (old.model, old.start, old.end):
        yield _about("moved", new, f"moves from {old.start}:{old.end} to {_blocks(new)}")
    if new.state != old.state:
        match new.state:
            case "ready":
                yield _about("ready", new, f"serves {_blocks(new)}", "good")
            case "draining":
                yield _about("draining", new, "takes no new work and is about to leave its blocks")
            case "joining":
                yield _about("joined", new, f"loads {_blocks(new)}")


def _coverage(
    name: str, before: Sequence[tuple[int, int]] | None, after: Sequence[tuple[int, int]]
) -> Iterator[SwarmEvent]:
    if after and after != before:
        spans = ", ".join(f"{start}:{end}" for start, end in after)
        mood: Severity = "plain" if before is None or _within(after, before) else "bad"
        yield SwarmEvent("gap", f"blocks {spans} of {name} have no server", mood, name)
    elif not after and (before is None or before):
        yield SwarmEvent("complete", f"{name} is complete: every block is served", "good", name)


def _within(spans: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> bool:
    return all(any(low <= start and end <= high for low, high in others) for start, end in spans)


def _places(old: View, new: View) -> Iterator[SwarmEvent]:
    for key, router in new.routers.items():
        if key not in old.routers:
            yield SwarmEvent("router", f"the router {router.name} is there", "good")
    for key, router in old.routers.items():
        if key not in new.routers:
            yield SwarmEvent("router-left", f"the router {router.name} left", "bad")
    for key, site in new.directories.items():
        if key not in old.directories:
            yield SwarmEvent("directory", f"the directory {site.name} is there", "good")
