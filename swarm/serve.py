"""`swarm-server`: puts a stage, a listener and the directory together and serves until it is told to stop."""

from __future__ import annotations

import logging
import os
import secrets
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import zmq

from backends import BackendError, Batch, ModelInfo, Options, Row, Span, Stage, registry
from routing import wire
from routing.addresses import reachable
from routing.agent import Agent
from routing.assign import capacity
from routing.client import DirectoryClient
from routing.links import Context, Dialer, Listener, split_address
from routing.security import Gate, JoinToken
from swarm import __version__, models, progress
from swarm.errors import SwarmError
from swarm.fingerprint import fingerprint
from swarm.identities import claimed
from swarm.limits import Floods
from swarm.memory import free_memory
from swarm.process import Stop, announce
from swarm.server import Server

log = logging.getLogger(__name__)

KV_SHARE = 0.3  # of the free memory, for the KV cache where --kv-tokens does not say
KV_LEAST, KV_MOST = 2048, 262_144  # tokens
RESERVE = 1 << 30  # bytes left to the rest of the machine when the server chooses its own span


@dataclass(frozen=True)
class Settings:
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
    name: str = ""
    model_name: str = ""
    threads: int | None = None
    drain: float = 30.0  # s


def parse_span(text: str) -> Span:
    """`0:15`. Raises: SwarmError: it is not a span."""
    start, colon, end = text.partition(":")
    if not colon or not start.isdecimal() or not end.isdecimal() or int(start) >= int(end):
        raise SwarmError(f"--blocks {text!r} is no span: write START:END, for example 0:15 for the blocks 0 to 14", 2)
    return Span(int(start), int(end))


def serve(settings: Settings, stop: Stop) -> None:
    """Join the swarm, load the span, serve it.

    Raises:
        SwarmError, BackendError, LinkError, DirectoryError, SecurityError: each with a line for the user.
    """
    # OpenMP's threads otherwise spin for a while after each forward, which is just when the next hop needs the cores
    # where several servers share a machine. It is read when torch is imported, which is later than here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    token = JoinToken.parse(settings.join)
    backend = registry.find(settings.backend)
    model = models.resolve(settings.model)
    info = backend.describe(model.path)
    if settings.blocks is not None and settings.blocks.end > info.blocks:
        raise BackendError(f"--blocks {settings.blocks} is outside {model.name}, which has {info.blocks} blocks")
    with ExitStack() as resources:
        name, identity = resources.enter_context(claimed("server", settings.name))
        directory = DirectoryClient(token, identity, name, role="server")
        resources.callback(directory.close)
        directory.start()
        context: Context = zmq.Context()
        floods = Floods(time.monotonic)
        gate = Gate(context, lambda key: directory.admits(key) and floods.admits(key))
        resources.callback(gate.close)
        bind = settings.bind or _default_bind(token)
        listener = Listener(
            context, bind, identity, lambda key: directory.admits(key) and floods.heard(key), floods.useless
        )
        resources.callback(listener.close)
        agent = Agent(lambda: directory.view.routers, identity, listener.host, listener.port)
        resources.callback(agent.close)
        direct = reachable(listener.host, listener.port, settings.advertise)
        server = wire.Server(
            key=identity.public,
            name=name,
            addresses=agent.reachable(direct, settings.relayed),
            model=settings.model_name or model.name,
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
        span = settings.blocks or _choose_span(directory, server, info, settings)
        server = msgspec.structs.replace(server, start=span.start, end=span.end)
        directory.announce(server)
        stage = _load(settings, model.path, span)
        kv_tokens = settings.kv_tokens or _default_kv_tokens(stage)
        server = msgspec.structs.replace(
            server,
            addresses=agent.reachable(direct, settings.relayed),
            state="ready",
            device=stage.device,
            dtype=stage.dtype,
            throughput=_measure(stage),
            kv_tokens=kv_tokens,
            kv_free=kv_tokens,
            memory_used=stage.memory().weights,
            memory=stage.memory().weights + stage.memory().free,
        )

        def report(free: int, sessions: int) -> None:
            state: Literal["ready", "draining"] = "draining" if stop.is_set() else "ready"
            addresses = agent.reachable(direct, settings.relayed)
            directory.update(
                msgspec.structs.replace(
                    server, addresses=addresses, state=state, kv_free=max(free, 0), sessions=sessions
                )
            )

        poller = zmq.Poller()
        poller.register(listener.socket, zmq.POLLIN)
        dialer = Dialer(context, identity, poller, expelled=directory.expelled)
        resources.callback(dialer.close)
        loop = Server(
            stage,
            listener,
            dialer,
            key=identity.public,
            model=server.model,
            folder=model.path,
            kv_tokens=kv_tokens,
            report=report,
            useless=floods.useless,
            expelled=directory.expelled,
        )
        directory.announce(server)
        resources.callback(directory.withdraw)
        stop.abrupt = False
        announce(f"ready: {name} serves blocks {span} of {server.model} on {stage.device} ({server.addresses[0]})")
        loop.run(poller, stop)
        if loop.sessions:
            log.info("leaving: waiting for %d sessions to move or end, at most %.0f s", loop.sessions, settings.drain)
        loop.drain(poller, settings.drain)


def _default_bind(token: JoinToken) -> str:
    """Loopback where the whole swarm is on this machine, every interface otherwise; any free port."""
    hosts = {split_address(address)[0] for site in token.directories for address in site.addresses}
    local = all(host == "localhost" or host == "::1" or host.startswith("127.") for host in hosts)
    return "127.0.0.1:0" if local else "0.0.0.0:0"


def _choose_span(directory: DirectoryClient, server: wire.Server, info: ModelInfo, settings: Settings) -> Span:
    blocks = capacity(
        free_memory(settings.device),
        max(info.block_bytes),
        sum(info.edge_bytes),
        info.kv_bytes_per_token,
        settings.kv_tokens or KV_LEAST,
        RESERVE,
    )
    if blocks < 1:
        raise SwarmError(
            f"there is not enough free memory for one block of {server.model}: close other programs, use --quantize, "
            f"or name the blocks with --blocks to try it all the same"
        )
    span = Span(*directory.place(server, blocks))
    log.info("the directory asks for blocks %s; there is memory for %d of %d", span, blocks, info.blocks)
    return span


def _load(settings: Settings, folder: Path, span: Span) -> Stage:
    backend = registry.find(settings.backend)
    started = time.monotonic()
    with progress.shown() as show:
        options = Options(
            device=settings.device,
            dtype=settings.dtype,
            quantize=settings.quantize,
            threads=settings.threads,
            progress=lambda done, total: show(f"loading blocks {span}", done, total),
        )
        stage = backend.load(folder, span, options)
    log.info("loaded blocks %s in %.1f s", span, time.monotonic() - started)
    return stage


def _default_kv_tokens(stage: Stage) -> int:
    fitting = int(stage.memory().free * KV_SHARE) // max(stage.kv_bytes_per_token, 1)
    return min(max(fitting, KV_LEAST), KV_MOST)


def _measure(stage: Stage, steps: int = 6) -> float:
    """Blocks times tokens per second of single decode steps, the median of a few."""
    width = () if stage.span.start == 0 else (stage.model.hidden_size,)
    inputs = np.zeros((1, *width), np.int32 if stage.span.start == 0 else np.float32)
    seconds = []
    for position in range(steps):
        started = time.perf_counter()
        stage.forward(Batch(inputs, [Row("throughput", position, 1, 1)], stage.span))
        seconds.append(time.perf_counter() - started)
    stage.free("throughput")
    return (stage.span.end - stage.span.start) / statistics.median(seconds)
