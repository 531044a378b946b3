"""A server's time with one span: what it tells the directory, and whether it is over."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec

from backends import Span
from routing import wire
from routing.client import DirectoryClient
from swarm.errors import Expelled
from swarm.server.rebalancing import Moves, RebalanceStep
from swarm.server.server import Server

log = logging.getLogger(__name__)


class Tenure(threading.Event):
    """
    Args:
        server: as it is ready to serve the span.
        stop: ends the program.
        moves: decides whether to move; None: the server stays where the user has put it.
        addresses: where the server can be reached now.

    Attributes:
        target: the span to move to, once it is over for that reason.
    """

    def __init__(
        self,
        directory: DirectoryClient,
        server: wire.ServerInfo,
        stop: threading.Event,
        moves: Moves | None,
        addresses: Callable[[], tuple[str, ...]],
        clock: Callable[[], float],
    ) -> None:
        super().__init__()
        self._directory = directory
        self._server = server
        self._stop = stop
        self._moves = moves
        self._addresses = addresses
        self._clock = clock
        self._loop: Server | None = None
        self.target: Span | None = None

    def begin(self, loop: Server) -> None:
        """Tell everybody that it is ready."""
        self._loop = loop
        self._server = msgspec.structs.replace(self._server, addresses=self._addresses())
        self._directory.announce(self._server)

    def is_set(self) -> bool:
        """Whether the server should go."""
        return self._stop.is_set() or self.target is not None

    def report(self, free: int, sessions: int) -> None:
        """Called by the server's loop about once a second.

        Raises:
            Expelled: there is no swarm to serve any longer.
        """
        if self._directory.banished:
            raise Expelled
        if self._loop is None:
            return
        if self._moves is not None and not self.is_set():
            self._consider(self._loop, self._moves)
        self._server = msgspec.structs.replace(
            self._server,
            addresses=self._addresses(),
            state="draining" if self._loop.leaving or self.is_set() else "ready",
            kv_free=max(free, 0),
            sessions=sessions,
        )
        self._directory.update(self._server)

    def _consider(self, loop: Server, moves: Moves) -> None:
        known = self._directory.view.servers.values()
        others = [s for s in known if s.model == self._server.model and s.key != self._server.key]
        match moves.look([*others, self._server], self._server.blocks, self._clock()):
            case Span() as span:
                log.info("moving to blocks %s, where the swarm is thinner", span)
                self.target = span
            case RebalanceStep.DRAIN:
                log.info("the swarm is thinner elsewhere: no new sessions for now")
                loop.leave()
            case RebalanceStep.RETURN:
                log.info("not needed elsewhere any longer")
                loop.leaving = False
            case RebalanceStep.STAY:
                pass
