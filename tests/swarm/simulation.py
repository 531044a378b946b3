"""A swarm in one process without sockets, threads and clocks: the `Server` and `RemoteSession` that ship, over a
network that delivers in a seeded order and can lose servers; routes are those of the `Planner` that ships."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from backends import Span
from routing import wire
from routing.links import Connected, LinkEvent, Lost, Received
from swarm.client.actions import (
    Action,
    Emit,
    Finished,
    Notice,
    PlanRoute,
    ReportFailure,
    ReportSuccess,
    Send,
    StepOutput,
)
from swarm.client.planner import Planner, RouteRequest
from swarm.client.session import RemoteSession
from swarm.errors import SwarmError
from swarm.sampling import Sampling
from swarm.server.server import Server
from tests.swarm.toy import BLOCKS, WIDTH, ToyStage

TICK = 0.01  # s of simulated time per turn of everybody


def key(name: str) -> str:
    return name.ljust(40, "_")


@dataclass
class Network:
    """Every ordered pair of peers has a queue; frames go through the real encoder and decoder."""

    random: random.Random
    now: float = 0.0
    queues: dict[tuple[str, str], deque[list[bytes | memoryview]]] = field(default_factory=dict)
    nodes: dict[str, SimulatedServer] = field(default_factory=dict)
    sent: list[tuple[str, str, wire.AnyMessage]] = field(default_factory=list)
    slowness: float = 0.0  # the chance that a queue delivers nothing in a turn

    def send(self, sender: str, receiver: str, message: wire.Message, array: wire.Array | None) -> None:
        self.queues.setdefault((sender, receiver), deque()).append(wire.encode(message, array))

    def receive(self, receiver: str) -> Iterator[tuple[str, wire.AnyMessage, wire.Array | None]]:
        pairs = [pair for pair in self.queues if pair[1] == receiver]
        self.random.shuffle(pairs)
        for pair in pairs:
            if self.random.random() < self.slowness:
                continue
            while self.queues[pair]:
                message, array = wire.decode(self.queues[pair].popleft())
                self.sent.append((*pair, message))
                yield pair[0], message, array


class SimulatedListener:
    def __init__(self, network: Network, me: str) -> None:
        self.network, self.me = network, me
        self.inbox: deque[Received] = deque()

    def receive(self) -> Received | None:
        if not self.inbox:
            for sender, message, array in self.network.receive(self.me):
                self.inbox.append(Received(sender, message, array, sender.encode()))
        return self.inbox.popleft() if self.inbox else None

    def send(self, route: bytes, message: wire.Message, array: wire.Array | None = None) -> bool:
        if (node := self.network.nodes.get(route.decode())) is not None:  # it has dialled us
            node.dialer.events.append(Received(self.me, *wire.decode(wire.encode(message, array))))
        else:
            self.network.send(self.me, route.decode(), message, array)
        return True


class SimulatedDialer:
    def __init__(self, network: Network, me: str) -> None:
        self.network, self.me = network, me
        self.dialled: set[str] = set()
        self.events: deque[LinkEvent] = deque()

    def __contains__(self, peer: str) -> bool:
        return peer in self.dialled

    def peers(self) -> set[str]:
        return set(self.dialled)

    def dial(self, peer: str, addresses: tuple[str, ...]) -> None:
        if peer not in self.dialled:
            self.dialled.add(peer)
            up = peer in self.network.nodes
            self.events.append(Connected(peer) if up else Lost(peer, "unreachable"))

    def hang_up(self, peer: str) -> None:
        self.dialled.discard(peer)

    def send(self, peer: str, message: wire.Message, array: wire.Array | None = None) -> bool:
        if peer not in self.dialled:
            return False
        if peer in self.network.nodes:
            self.network.send(self.me, peer, message, array)
        return True

    def collect(self) -> list[LinkEvent]:
        events, self.events = list(self.events), deque()
        return events


class SimulatedServer:
    def __init__(
        self,
        network: Network,
        name: str,
        span: Span,
        kv_tokens: int = 4096,
        batched: bool = True,
        outputs: int = 1 << 20,
    ) -> None:
        self.network = network
        self.key = key(name)
        self.instance = str(network.random.getrandbits(64))  # another one whenever it is started
        self.kv_tokens = kv_tokens
        self.stage = ToyStage(span, batched)
        self.dialer = SimulatedDialer(network, self.key)
        self.server = Server(
            self.stage,
            SimulatedListener(network, self.key),  # type: ignore[arg-type]
            self.dialer,  # type: ignore[arg-type]
            key=self.key,
            model="toy",
            folder=Path(),
            kv_tokens=kv_tokens,
            outputs=outputs,
            clock=lambda: network.now,
        )
        self.period = 0.0  # s from one turn to the next
        self.next_turn = 0.0
        self.hung = False
        self.leaving = False
        self.ends = math.inf  # when a server that leaves gives up what is still there

    def info(self) -> wire.ServerInfo:
        """What a directory would say of it. Its speed is another one each time, so that routes are."""
        return wire.ServerInfo(
            key=self.key,
            name="",
            addresses=("127.0.0.1:1",),
            model="toy",
            blocks=BLOCKS,
            start=self.stage.span.start,
            end=self.stage.span.end,
            hidden_size=WIDTH,
            context_length=0,
            backend="toy",
            device="cpu",
            dtype="float32",
            state="draining" if self.leaving else "ready",
            throughput=self.network.random.uniform(1, 1000),
            kv_tokens=self.kv_tokens,
            load=wire.ServerLoad(max(self.server.status().available_tokens, 0), self.server.status().sessions),
            instance=self.instance,
        )

    def turn(self) -> None:
        if not self.hung and self.network.now >= self.next_turn:
            self.next_turn = self.network.now + self.period
            self.server.turn()


class Client:
    """Drives one session the way `swarm.client.driver` does."""

    def __init__(self, swarm: Simulation, name: str, max_length: int, planner: Planner) -> None:
        self.swarm = swarm
        self.planner = planner
        self.key = key(name)
        self.session = RemoteSession(name.ljust(32, "0"), "toy", max_length)
        self.tokens: list[wire.Token] = []
        self.notices: list[str] = []
        self.outputs: list[wire.Array] = []
        self.done: Finished | None = None
        self.loses_closes = False  # as if its connections always broke before a `Close` got through

    def generate(self, ids: list[int], new: int, sampling: Sampling | None = None) -> None:
        self.done, self.tokens = None, []
        self.do(self.session.generate(ids, new, sampling or Sampling(), self.swarm.network.now))

    def step(self, ids: list[int], position: int) -> None:
        self.done = None
        self.do(self.session.step(ids, position, "logits", self.swarm.network.now))

    @property
    def ids(self) -> list[int]:
        return [token.token for token in self.tokens]

    def do(self, actions: list[Action]) -> None:
        queue = deque(actions)
        while queue:
            match queue.popleft():
                case Send(_, wire.Close(), _) if self.loses_closes:
                    pass
                case Send(hop, message, array):
                    if hop.peer in self.swarm.network.nodes:
                        self.swarm.network.send(self.key, hop.peer, message, array)
                    else:
                        queue.extend(self.session.lost(hop.peer, "closed", self.swarm.network.now))
                case PlanRoute(avoid, keep):
                    queue.extend(self.plan(avoid, keep))
                case Emit(wire.Token() as token):
                    self.tokens.append(token)
                case Emit(Notice(text)):
                    self.notices.append(text)
                case Emit(StepOutput(array)):
                    self.outputs.append(array)
                case Finished() as done:
                    self.done = done
                case ReportFailure(peer):
                    node = self.swarm.network.nodes.get(peer)
                    self.swarm.failed[peer] = node.instance if node else ""
                    self.planner.report_failure(peer, self.swarm.failed[peer], self.swarm.network.now)
                case ReportSuccess(peer):
                    self.planner.report_success(peer)

    def plan(self, avoid: frozenset[str], keep: tuple[wire.Hop, ...]) -> list[Action]:
        now, session = self.swarm.network.now, self.session
        request = RouteRequest(
            session.id, session.model, session.max_length, session.reserved_on, avoid, keep, self.swarm.round_trip
        )
        servers = [node.info() for node in self.swarm.network.nodes.values()]
        try:
            route = self.planner.route(request, servers, now)
        except SwarmError as error:
            return session.no_route(error, now)
        self.check(request, servers, route)
        return session.routed(route, now)

    def check(self, request: RouteRequest, servers: list[wire.ServerInfo], route: tuple[wire.Hop, ...]) -> None:
        """A banned server is in the route only where the others do not hold every block."""
        banned = self.planner.banned(servers, self.swarm.network.now)
        for server in servers:
            assert server.key not in banned or self.swarm.failed.get(server.key) in ("", server.instance), (
                "it was restarted"
            )
        usable = [
            server
            for server in servers
            if server.state == "ready"
            and server.key not in request.avoid | banned.keys()
            and (server.key in request.reserved or server.load.kv_free >= request.max_length)
        ]
        held = {block for server in usable for block in range(server.start, server.end)}
        if held == set(range(BLOCKS)):
            new = {hop.peer for hop in route if hop not in request.keep}
            assert not banned.keys() & new, "a server that has just failed is in the route"

    def turn(self) -> None:
        for sender, message, array in self.swarm.network.receive(self.key):
            self.do(self.session.received(sender, message, array, self.swarm.network.now))
        self.do(self.session.tick(self.swarm.network.now))


class Simulation:
    def __init__(self, seed: int = 0, slowness: float = 0.0) -> None:
        self.network = Network(random.Random(seed), slowness=slowness)
        self.clients: list[Client] = []
        self.failed: dict[str, str] = {}  # the start of each server that a client last reported a failure of

    def add(self, name: str, start: int, end: int, **options: int) -> SimulatedServer:
        server = SimulatedServer(self.network, name, Span(start, end), **options)  # type: ignore[arg-type]
        self.network.nodes[server.key] = server
        return server

    def client(self, name: str = "client", max_length: int = 256, planner: Planner | None = None) -> Client:
        """A client with one session; those with the same planner are one process."""
        client = Client(self, name, max_length, planner or Planner())
        self.clients.append(client)
        return client

    def kill(self, name: str) -> None:
        """The server vanishes with all that was under way to and from it; its peers see the connection break."""
        gone = key(name)
        del self.network.nodes[gone]
        for pair in [pair for pair in self.network.queues if gone in pair]:
            del self.network.queues[pair]
        for node in self.network.nodes.values():
            if gone in node.dialer.dialled:
                node.dialer.events.append(Lost(gone, "closed"))
        for client in self.clients:
            client.do(client.session.lost(gone, "closed", self.network.now))

    def hang(self, name: str, hung: bool = True) -> None:
        """The server stops in the middle of everything; what is sent to it waits until it goes on."""
        self.network.nodes[key(name)].hung = hung

    def leave(self, name: str, patience: float = 30.0) -> None:
        """The server is asked to stop."""
        node = self.network.nodes[key(name)]
        node.server.begin_drain()
        node.leaving, node.ends = True, self.network.now + patience

    def cut(self, one: str, other: str) -> None:
        """The connection from one server to another breaks and is made again; what was under way is gone."""
        self.network.queues.pop((key(one), key(other)), None)
        dialer = self.network.nodes[key(one)].dialer
        if key(other) in dialer.dialled:
            dialer.events += [Lost(key(other), "closed"), Connected(key(other))]

    def round_trip(self, one: str | None, other: str) -> float:
        return self.network.random.uniform(0, 0.1)

    def turn(self) -> None:
        self.network.now += TICK
        actors = [*self.network.nodes.values(), *self.clients]
        self.network.random.shuffle(actors)
        for actor in actors:
            actor.turn()
        for name, node in list(self.network.nodes.items()):
            if node.leaving and not node.hung and (not node.server.status().sessions or self.network.now >= node.ends):
                node.server.dismiss()
                self.network.random.shuffle(self.clients)
                for client in self.clients:
                    client.turn()  # what it has said gets through
                self.kill(name.rstrip("_"))

    def run(self, turns: int = 20_000) -> None:
        """Until every client is done."""
        for _ in range(turns):
            if all(client.done for client in self.clients):
                return
            self.turn()
        raise AssertionError(f"not done after {turns} turns: {[client.session.phase for client in self.clients]}")


def error_of(client: Client) -> SwarmError | None:
    assert client.done is not None
    return client.done.error
