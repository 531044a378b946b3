"""Server program: `swarm-server`, from its options to spans that are served."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace

import msgspec
import zmq

from backends import BackendError, Span, registry
from routing import wire
from routing.addresses import reachable
from routing.client import DirectoryClient
from routing.links import Context, Dialer, Listener, split_address
from routing.relay.agent import RelayAgent
from routing.security import Identity, JoinToken, ZapAuthenticator
from swarm.errors import Expelled, SwarmError
from swarm.models import resolve
from swarm.models.fingerprint import fingerprint
from swarm.server import loading
from swarm.server.polling import AWAKE, AdaptivePoller
from swarm.server.rate_limits import FloodGuard
from swarm.server.rebalancing import Rebalancer, RebalanceStep
from swarm.server.server import Server
from swarm.server.sessions import ServerStatus
from swarm.system import firewall
from swarm.system.identities import display_name, hold_identity
from swarm.system.process import StopSignal, print_contract_line
from swarm.version import __version__

log = logging.getLogger(__name__)

STATUS_EVERY = 1.0  # s


@dataclass(frozen=True)
class ServerSettings:
    """Settings of `swarm-server`, as its options name them; `blocks` None: the directory decides."""

    model: str
    join: str
    blocks: Span | None = None
    bind: str = ""
    advertise: tuple[str, ...] = ()
    relayed: bool = False
    backend: str = "transformers"
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    kv_tokens: int | None = None
    kv_dtype: str = "auto"
    name: str = ""
    model_name: str = ""
    threads: int | None = None
    drain: float = 30.0  # s
    awake: float = AWAKE


def parse_span(text: str) -> Span:
    """`0:15`. Raises: SwarmError: it is not a span."""
    start, colon, end = text.partition(":")
    if not colon or not start.isdecimal() or not end.isdecimal() or int(start) >= int(end):
        raise SwarmError(f"--blocks {text!r} is no span: write START:END, for example 0:15 for the blocks 0 to 14", 2)
    return Span(int(start), int(end))


@dataclass(frozen=True)
class Connections:
    """Connections of a server to its swarm: its sockets, its directories, and the ways by which it can be reached."""

    identity: Identity
    directory: DirectoryClient
    listener: Listener
    dialer: Dialer
    poller: AdaptivePoller
    floods: FloodGuard
    agent: RelayAgent
    direct: tuple[str, ...]
    relayed: bool

    def addresses(self) -> tuple[str, ...]:
        """Where the server can be reached now."""
        return self.agent.reachable(self.direct, self.relayed)


class ServerProgram:
    """Server program: joins the swarm, loads a span and serves it, then the next one, until it is told to stop.

    Every method may raise SwarmError, BackendError, LinkError, DirectoryError or SecurityError, with a line for the
    user.
    """

    def __init__(self, settings: ServerSettings, stop: StopSignal, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop = stop
        self._clock = clock
        self._token = JoinToken.parse(settings.join)
        if settings.backend != registry.AUTO:
            registry.find(settings.backend)  # before a model is fetched for it
        self._model = resolve.resolve(settings.model)
        self._settings = settings = replace(settings, backend=loading.backend_of(settings, self._model.path))
        self._info = registry.find(settings.backend).describe(self._model.path, loading.options_of(settings))
        if settings.blocks is not None and settings.blocks.end > self._info.blocks:
            raise BackendError(
                f"--blocks {settings.blocks} is outside {self._model.name}, which has {self._info.blocks} blocks"
            )
        self._rebalancer: Rebalancer | None = None
        self._last_span: Span | None = None  # the span that it served before

    def run(self) -> None:
        """Serve until the program is told to stop."""
        with ExitStack() as resources:
            connections = self.connect(resources)
            server = self.describe(connections)
            server, span = self.choose_span(connections, server)
            resources.callback(connections.directory.withdraw)
            following: Span | None = span
            while following is not None:
                following = self.serve_span(connections, server, following)
                server = msgspec.structs.replace(server, movable=self._rebalancer is not None)

    def connect(self, resources: ExitStack) -> Connections:
        """Enrol at the directories and listen."""
        settings = self._settings
        name, identity = resources.enter_context(hold_identity("server", settings.name))
        directory = DirectoryClient(self._token, identity, settings.name or display_name(name), role="server")
        resources.callback(directory.close)
        directory.start()
        context: Context = zmq.Context()
        floods = FloodGuard(self._clock)
        authenticator = ZapAuthenticator(context, lambda key: directory.admits(key) and floods.admits(key))
        resources.callback(authenticator.close)
        listener = Listener(
            context,
            settings.bind or _default_bind(self._token),
            identity,
            lambda key: directory.admits(key) and floods.admit_message(key),
            floods.record_useless,
        )
        resources.callback(listener.close)
        firewall.log_rule_once(listener.host)
        agent = RelayAgent(lambda: directory.view.routers, identity, listener.host, listener.port)
        resources.callback(agent.close)
        poller = zmq.Poller()
        poller.register(listener.socket, zmq.POLLIN)
        dialer = Dialer(context, identity, poller, expelled=directory.expelled)
        resources.callback(dialer.close)
        return Connections(
            identity,
            directory,
            listener,
            dialer,
            AdaptivePoller(poller, settings.awake),
            floods,
            agent,
            reachable(listener.host, listener.port, settings.advertise),
            settings.relayed,
        )

    def describe(self, connections: Connections) -> wire.ServerInfo:
        """What the directories are told of the server before it has a span."""
        settings, info = self._settings, self._info
        others = connections.directory.view.servers.values()
        served = (server.model for server in others if server.protocol == "ring")
        return wire.ServerInfo(
            key=connections.identity.public,
            name=connections.directory.name,
            addresses=connections.addresses(),
            model=settings.model_name or resolve.match_spelling(self._model.name, served),
            blocks=info.blocks,
            start=0,
            end=info.blocks,
            hidden_size=info.hidden_size,
            context_length=info.context_length,
            backend=settings.backend,
            device=settings.device,
            dtype=settings.dtype,
            quantize=settings.quantize or "",
            fingerprint=fingerprint(self._model.path),
            version=__version__,
            instance=secrets.token_hex(8),
        )

    def choose_span(self, connections: Connections, server: wire.ServerInfo) -> tuple[wire.ServerInfo, Span]:
        """The span that the user names, or that the directory asks for."""
        if self._settings.blocks is not None:
            return server, self._settings.blocks
        capacity = loading.capacity_of(self._info, self._settings, server.model)
        span = Span(*connections.directory.place(server, capacity))
        self._rebalancer = Rebalancer(server.key, capacity, self._clock())
        log.info("the directory asks for blocks %s; there is memory for %d of %d", span, capacity, self._info.blocks)
        return msgspec.structs.replace(server, movable=True), span

    def serve_span(self, connections: Connections, server: wire.ServerInfo, span: Span) -> Span | None:
        """Load the span and serve it; the span to serve next, None where the program shall end."""
        server = msgspec.structs.replace(
            server, state="joining", start=span.start, end=span.end, load=wire.ServerLoad()
        )
        connections.directory.announce(server)
        try:
            stage = loading.load(self._settings, self._model.path, span)
        except (BackendError, MemoryError) as error:
            if self._last_span in (None, span):
                raise
            log.warning("cannot load blocks %s, going back to %s for good: %s", span, self._last_span, error)
            self._rebalancer = None
            return self._last_span
        server = loading.described(server, stage, self._settings.kv_tokens)
        server = msgspec.structs.replace(server, addresses=connections.addresses())
        loop = Server(
            stage,
            connections.listener,
            connections.dialer,
            key=server.key,
            model=server.model,
            folder=self._model.path,
            kv_tokens=server.kv_tokens,
            record_useless=connections.floods.record_useless,
            expelled=connections.directory.expelled,
        )
        connections.directory.announce(server)
        self._tell_ready(server, span)
        target = self._serve(connections, server, loop)
        self._drain(connections, server, loop)
        self._last_span = span
        return None if self._stop.is_set() else target

    def _tell_ready(self, server: wire.ServerInfo, span: Span) -> None:
        self._stop.abrupt = False
        text = f"{server.name} serves blocks {span} of {server.model} on {server.device} ({server.addresses[0]})"
        if self._last_span is None:
            print_contract_line(f"ready: {text}")
        else:
            log.info("moved: %s", text)

    def _serve(self, connections: Connections, server: wire.ServerInfo, loop: Server) -> Span | None:
        """Serve until the program is told to stop, or another span is wanted, which is given back."""
        while not self._stop.is_set():
            loop.run(connections.poller, self._stop.is_set, STATUS_EVERY)
            server = self._report(connections, server, loop.status())
            if (target := self._rebalance(connections, server, loop)) is not None:
                return target
        return None

    def _drain(self, connections: Connections, server: wire.ServerInfo, loop: Server) -> None:
        """Let the sessions move to other servers, or end; what is left when patience is over fails."""
        loop.begin_drain()
        limit = self._clock() + self._settings.drain
        if sessions := loop.status().sessions:
            log.info("waiting for %d sessions to move or end, at most %.0f s", sessions, self._settings.drain)
        server = self._report(connections, server, loop.status())
        while loop.status().sessions and (rest := limit - self._clock()) > 0:
            loop.run(connections.poller, lambda: not loop.status().sessions, min(rest, STATUS_EVERY))
            server = self._report(connections, server, loop.status())
        loop.dismiss()

    def _report(self, connections: Connections, server: wire.ServerInfo, status: ServerStatus) -> wire.ServerInfo:
        """Tell the directories how the server is. Raises: Expelled: there is no swarm to serve any longer."""
        if connections.directory.banished:
            raise Expelled
        server = msgspec.structs.replace(
            server,
            addresses=connections.addresses(),
            state="draining" if status.is_draining else "ready",
            load=msgspec.structs.replace(server.load, kv_free=status.available_tokens, sessions=status.sessions),
        )
        connections.directory.update(server)
        return server

    def _rebalance(self, connections: Connections, server: wire.ServerInfo, loop: Server) -> Span | None:
        if self._rebalancer is None or self._stop.is_set():
            return None
        others = [each for each in connections.directory.view.serving(server.model) if each.key != server.key]
        match self._rebalancer.look([*others, server], server.blocks, self._clock()):
            case Span() as span:
                log.info("moving to blocks %s, where the swarm is thinner", span)
                return span
            case RebalanceStep.DRAIN:
                log.info("the swarm is thinner elsewhere: no new sessions for now")
                loop.begin_drain()
            case RebalanceStep.RETURN:
                log.info("not needed elsewhere any longer")
                loop.cancel_drain()
            case RebalanceStep.STAY:
                pass
        return None


def serve(settings: ServerSettings, stop: StopSignal) -> None:
    """Join the swarm, load the span, serve it."""
    # OpenMP's threads otherwise spin for a while after each forward, which is just when the next hop needs the cores
    # where several servers share a machine. It is read when torch is imported, which is later than here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ServerProgram(settings, stop).run()


def _default_bind(token: JoinToken) -> str:
    """Loopback where the whole swarm is on this machine, every interface otherwise; any free port."""
    hosts = {split_address(address)[0] for site in token.directories for address in site.addresses}
    local = all(host == "localhost" or host == "::1" or host.startswith("127.") for host in hosts)
    return "127.0.0.1:0" if local else "0.0.0.0:0"
