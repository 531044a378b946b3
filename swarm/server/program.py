"""`swarm-server`: puts a stage, a listener and the directory together and serves until it is told to stop."""

from __future__ import annotations

import logging
import os
import secrets
import time
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
from routing.security import JoinToken, ZapAuthenticator
from swarm import __version__
from swarm.errors import SwarmError
from swarm.models import resolve
from swarm.models.fingerprint import fingerprint
from swarm.server import loading
from swarm.server.polling import AWAKE, AdaptivePoller
from swarm.server.rate_limits import FloodGuard
from swarm.server.rebalancing import Moves
from swarm.server.server import Server
from swarm.server.tenure import Tenure
from swarm.system import firewall
from swarm.system.identities import display_name, hold_identity
from swarm.system.process import StopSignal, print_contract_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSettings:
    """The options of `swarm-server`; `blocks` None: the directory decides."""

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


def serve(settings: ServerSettings, stop: StopSignal) -> None:
    """Join the swarm, load the span, serve it.

    Raises:
        SwarmError, BackendError, LinkError, DirectoryError, SecurityError: each with a line for the user.
    """
    # OpenMP's threads otherwise spin for a while after each forward, which is just when the next hop needs the cores
    # where several servers share a machine. It is read when torch is imported, which is later than here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    token = JoinToken.parse(settings.join)
    if settings.backend != registry.AUTO:
        registry.find(settings.backend)  # before a model is fetched for it
    model = resolve.resolve(settings.model)
    settings = replace(settings, backend=loading.backend_of(settings, model.path))
    backend = registry.find(settings.backend)
    info = backend.describe(model.path, loading.options_of(settings))
    if settings.blocks is not None and settings.blocks.end > info.blocks:
        raise BackendError(f"--blocks {settings.blocks} is outside {model.name}, which has {info.blocks} blocks")
    with ExitStack() as resources:
        name, identity = resources.enter_context(hold_identity("server", settings.name))
        name = settings.name or display_name(name)
        directory = DirectoryClient(token, identity, name, role="server")
        resources.callback(directory.close)
        directory.start()
        context: Context = zmq.Context()
        floods = FloodGuard(time.monotonic)
        gate = ZapAuthenticator(context, lambda key: directory.admits(key) and floods.admits(key))
        resources.callback(gate.close)
        bind = settings.bind or _default_bind(token)
        listener = Listener(
            context, bind, identity, lambda key: directory.admits(key) and floods.heard(key), floods.useless
        )
        resources.callback(listener.close)
        firewall.log_rule_once(listener.host)
        agent = RelayAgent(lambda: directory.view.routers, identity, listener.host, listener.port)
        resources.callback(agent.close)
        direct = reachable(listener.host, listener.port, settings.advertise)
        server = wire.ServerInfo(
            key=identity.public,
            name=name,
            addresses=agent.reachable(direct, settings.relayed),
            model=settings.model_name
            or resolve.match_spelling(model.name, (s.model for s in directory.view.servers.values())),
            blocks=info.blocks,
            start=0,
            end=info.blocks,
            hidden_size=info.hidden_size,
            context_length=info.context_length,
            backend=settings.backend,
            device=settings.device,
            dtype=settings.dtype,
            quantize=settings.quantize or "",
            fingerprint=fingerprint(model.path),
            version=__version__,
            instance=secrets.token_hex(8),
        )
        moves = None
        span = settings.blocks
        if span is None:
            fitting = loading.capacity_of(info, settings, server.model)
            span = Span(*directory.place(server, fitting))
            moves = Moves(identity.public, fitting, time.monotonic())
            log.info("the directory asks for blocks %s; there is memory for %d of %d", span, fitting, info.blocks)
        poller = zmq.Poller()
        poller.register(listener.socket, zmq.POLLIN)
        dialer = Dialer(context, identity, poller, expelled=directory.expelled)
        resources.callback(dialer.close)
        vigil = AdaptivePoller(poller, settings.awake)
        resources.callback(directory.withdraw)
        server = msgspec.structs.replace(server, movable=moves is not None)
        served: Span | None = None  # what it served before it moved
        while span is not None:
            server = msgspec.structs.replace(server, state="joining", start=span.start, end=span.end, sessions=0)
            directory.announce(server)
            try:
                stage = loading.load(settings, model.path, span)
            except (BackendError, MemoryError) as error:
                if served in (None, span):
                    raise
                log.warning("cannot load blocks %s, going back to %s for good: %s", span, served, error)
                span, moves = served, None
                server = msgspec.structs.replace(server, movable=False)
                continue
            server = loading.described(server, stage, settings.kv_tokens)
            tenure = Tenure(
                directory, server, stop, moves, lambda: agent.reachable(direct, settings.relayed), time.monotonic
            )
            loop = Server(
                stage,
                listener,
                dialer,
                key=identity.public,
                model=server.model,
                folder=model.path,
                kv_tokens=server.kv_tokens,
                report=tenure.report,
                useless=floods.useless,
                expelled=directory.expelled,
            )
            tenure.begin(loop)
            stop.abrupt = False
            text = f"{name} serves blocks {span} of {server.model} on {stage.device} ({server.addresses[0]})"
            if served is None:
                print_contract_line(f"ready: {text}")
            else:
                log.info("moved: %s", text)
            loop.run(vigil, tenure)
            if loop.sessions:
                log.info("waiting for %d sessions to move or end, at most %.0f s", loop.sessions, settings.drain)
            loop.drain(vigil, settings.drain)
            served, span = span, None if stop.is_set() else tenure.target
            del stage, loop, tenure  # the memory is needed for the next span


def _default_bind(token: JoinToken) -> str:
    """Loopback where the whole swarm is on this machine, every interface otherwise; any free port."""
    hosts = {split_address(address)[0] for site in token.directories for address in site.addresses}
    local = all(host == "localhost" or host == "::1" or host.startswith("127.") for host in hosts)
    return "127.0.0.1:0" if local else "0.0.0.0:0"
