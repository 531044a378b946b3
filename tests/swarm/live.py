"""Servers of the toy model with real sockets in this process, at a real directory: what a test can look into."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq

from backends import Span
from routing import wire
from routing.client import DirectoryClient
from routing.directory.directory import Directory
from routing.links import Context, Dialer, Listener
from routing.security import Identity, JoinToken, ZapAuthenticator
from swarm.server.polling import AdaptivePoller
from swarm.server.server import Server
from swarm.server.sessions import ServerStatus
from tests.routing.material import running
from tests.swarm.toy import BLOCKS, WIDTH, ToyStage

MODEL = "toy"
KV_TOKENS = 4096
STATUS_EVERY = 0.3  # s


@dataclass
class Live:
    """
    Attributes:
        changed: notified a few times a second, when the server says how it is, and when a KV cache is freed.
        status: what it last said.
    """

    identity: Identity
    server: Server
    stage: ToyStage
    described: wire.ServerInfo
    changed: threading.Condition
    status: ServerStatus

    @property
    def sessions(self) -> int:
        return self.server.status().sessions

    def wait(self, happened: Callable[[], bool], limit: float = 60.0) -> None:
        with self.changed:
            assert self.changed.wait_for(happened, limit), f"it did not happen: {self.sessions} sessions"


@contextmanager
def directory(folder: Path) -> Iterator[Directory]:
    with running(Directory("127.0.0.1:0", folder)) as started:
        yield started


@contextmanager
def serving(
    token: JoinToken, start: int = 0, end: int = BLOCKS, kv_tokens: int = KV_TOKENS, identity: Identity | None = None
) -> Iterator[Live]:
    identity = identity or Identity.create()
    changed = threading.Condition()
    stop = threading.Event()
    with ExitStack() as resources:
        client = resources.enter_context(DirectoryClient(token, identity, f"server-{start}:{end}"))
        context: Context = zmq.Context()
        resources.callback(context.term)
        resources.callback(ZapAuthenticator(context, client.admits).close)
        listener = Listener(context, "127.0.0.1:0", identity)
        resources.callback(listener.close)
        poller = zmq.Poller()
        poller.register(listener.socket, zmq.POLLIN)
        dialer = Dialer(context, identity, poller)
        resources.callback(dialer.close)
        stage = ToyStage(Span(start, end))
        free = stage.free

        def free_and_tell(session: str) -> None:
            free(session)
            with changed:
                changed.notify_all()

        def run() -> None:
            while not stop.is_set():
                server.run(AdaptivePoller(poller), stop.is_set, STATUS_EVERY)
                with changed:
                    live.status = server.status()
                    changed.notify_all()

        stage.free = free_and_tell  # type: ignore[method-assign]
        described = wire.ServerInfo(
            key=identity.public,
            name=f"server-{start}:{end}",
            addresses=(f"127.0.0.1:{listener.port}",),
            model=MODEL,
            blocks=BLOCKS,
            start=start,
            end=end,
            hidden_size=WIDTH,
            context_length=0,
            backend="toy",
            device="cpu",
            dtype="float32",
            state="ready",
            throughput=100.0,
            kv_tokens=kv_tokens,
            load=wire.ServerLoad(kv_free=kv_tokens),
        )
        server = Server(
            stage,
            listener,
            dialer,
            key=identity.public,
            model=MODEL,
            folder=Path(),
            kv_tokens=kv_tokens,
        )
        live = Live(identity, server, stage, described, changed, server.status())
        thread = threading.Thread(target=run, name=described.name)
        thread.start()
        client.announce(described)
        try:
            yield live
        finally:
            stop.set()
            thread.join()
