"""Server records: what one session of a client knows of each server that has to do with it: pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from routing import wire


@dataclass
class ServerRecord:
    """Server record: the part of one server in a session, and what it has answered.

    Attributes:
        hop: the blocks that the session last wanted of it.
        is_informed: it may know of the session, so it must be told of its end.
        is_holder: whatever it has cached begins with the tokens that the session counts as valid. A server that was
            out of the route in between may hold another sequence, so it is none any more.
        opened: its answer under this epoch; None: it owes one.
        has_failed: since the session last ran.
        refusal: why the session does without it for now: `lost`, or the code of its refusal; empty: it does not.
        is_leaving: it has asked the session to go.
        failed_dials: attempts to connect under this epoch.
    """

    hop: wire.Hop
    is_informed: bool = False
    is_holder: bool = False
    opened: wire.Opened | None = None
    has_failed: bool = False
    refusal: str = ""
    is_leaving: bool = False
    failed_dials: int = 0

    @property
    def is_avoided(self) -> bool:
        return bool(self.refusal) or self.is_leaving

    @property
    def says_nothing(self) -> bool:
        """Whether it says no more than no record at all."""
        return not (self.is_informed or self.is_holder or self.has_failed or self.is_avoided)


class ServerRecords(dict[str, ServerRecord]):
    """Server records by public key: all servers of the route, and others that failed, refused or leave."""

    @property
    def reserved(self) -> frozenset[str]:
        """Servers on which the session holds a reservation."""
        return frozenset(peer for peer, server in self.items() if server.is_holder)

    @property
    def informed(self) -> set[str]:
        return {peer for peer, server in self.items() if server.is_informed}

    @property
    def avoided(self) -> set[str]:
        return {peer for peer, server in self.items() if server.is_avoided}

    @property
    def leaving(self) -> set[str]:
        return {peer for peer, server in self.items() if server.is_leaving}

    @property
    def any_full(self) -> bool:
        """Whether a server was refused for want of room."""
        return any(server.refusal == wire.RefusalCode.BUSY for server in self.values())

    def cached_hops(self) -> list[wire.Hop]:
        """Hops with parts of the session that are still good, in the order of their blocks."""
        kept = [server for server in self.values() if server.is_holder and not server.is_avoided]
        return sorted((server.hop for server in kept if not server.has_failed), key=lambda hop: hop.start)

    def forgive(self) -> None:
        """Forget why servers were avoided: they may have room again, or have come back after they left."""
        for server in self.values():
            server.refusal, server.is_leaving = "", False

    def fail(self, peers: Collection[str], refusal: str) -> None:
        for peer in peers:
            self[peer].refusal, self[peer].has_failed = refusal, True

    def dismiss(self, peers: Collection[str]) -> list[wire.Hop]:
        """The session ends on these servers; gives back the hops that must be told."""
        told = [self[peer].hop for peer in peers if self[peer].is_informed]
        for peer in peers:
            self[peer].is_informed = self[peer].is_holder = False
        return told

    def change_route(self, route: Sequence[wire.Hop]) -> list[wire.Hop]:
        """Another route is taken; gives back the hops that have no part in it any more and must be told."""
        for server in self.values():
            # A server that is to compute other blocks than before gives up what it has cached.
            server.is_holder = server.is_holder and server.hop in route
        others = self.keys() - {hop.peer for hop in route}
        for peer in others:
            self[peer].is_leaving = False
        return self.dismiss(others)

    def begin_epoch(self, route: Sequence[wire.Hop]) -> None:
        """Every hop is asked to open the session anew."""
        for hop in route:
            server = self.setdefault(hop.peer, ServerRecord(hop))
            server.hop, server.is_informed, server.opened, server.failed_dials = hop, True, None, 0

    def opened(self, route: Sequence[wire.Hop]) -> list[wire.Opened]:
        """What the hops have answered in this epoch, in the order of the route."""
        return [answer for hop in route if (answer := self[hop.peer].opened)]

    def begin_running(self) -> None:
        """The session runs: earlier failures are over."""
        for server in self.values():
            server.has_failed = False
        for peer in [peer for peer, server in self.items() if server.says_nothing]:
            del self[peer]
