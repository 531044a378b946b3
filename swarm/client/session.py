"""What a client does about one session: a state machine without sockets, threads and clocks.

Each method takes something that happened and a time, and gives back what is to be done, as a list of actions. The
driver (`swarm.client.driver`) carries them out. The client keeps every token id of the sequence, so whatever is lost,
it can start a newer epoch on another route and replay: hops that survived keep their KV cache up to the last token that
the client has, and newcomers are fed by the hop before them, or from the token ids (`swarm.client.replay`).

A hop is lost when its connection breaks, or when it does not answer in time (`swarm.client.health`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from backends.stage import Array, Output
from routing import wire
from routing.links import LossReason
from swarm.client import replay
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
from swarm.client.health import HealthMonitor, SendProbes, Stalled, Unresponsive
from swarm.client.tasks import GenerateTask, StepTask
from swarm.errors import BadRequest, Expelled, Overloaded, SessionFailed, SwarmError, Unavailable
from swarm.sampling import Sampling, looks_back
from swarm.system.logs import printable

OPEN_TIMEOUT = 10.0  # s for a hop to answer that a session is open
PROGRESS_TIMEOUT = 300.0  # s without a token or a result until the session is given up; a prompt may take long
RETRY_PAUSE = 0.5  # s between two looks for a route
LONGEST_PAUSE = 4.0  # s, when one attempt after the other fails
REFUSALS = 15  # refused handshakes in a row until a server is taken for lost
HASTY = 3  # failures in a row after which the next attempt waits
MAX_FAILURES = 8  # without any progress in between, and never before the session's patience is over
MOVE_PAUSE = 1.0  # s between two looks for another place than a server that leaves


class Phase(Enum):
    IDLE = "idle"
    PLANNING = "planning"  # a Plan is under way
    WAITING = "waiting"  # for a route to appear
    OPENING = "opening"
    RUNNING = "running"


@dataclass
class RemoteSession:
    """One sequence and the route that computes it.

    Attributes:
        max_length: tokens that every hop reserves.
        ids: the whole sequence as far as the client knows it.
        patience: s to wait for a route when a hop was lost on the way.
        busy_patience: s to wait for room on servers that are full.
        through: hops that the first route is to have.
        without: servers that are never used.
    """

    id: str
    model: str
    max_length: int
    patience: float = 30.0
    busy_patience: float = 10.0
    ids: list[int] = field(default_factory=list)
    through: tuple[wire.Hop, ...] = ()
    without: frozenset[str] = frozenset()
    route: tuple[wire.Hop, ...] = ()
    epoch: int = 0
    phase: Phase = Phase.IDLE
    _goal: GenerateTask | StepTask | None = None
    _stepping: bool = False  # the hops are open without a ring, and hold the whole sequence
    # Whatever these hops have cached, its first `_valid` tokens are those of `ids`. A server that was out of the route
    # in between may hold another sequence, so it is no holder any more.
    _holders: dict[str, wire.Hop] = field(default_factory=dict)
    _valid: int = 0
    _asked: dict[str, wire.Hop] = field(default_factory=dict)  # all that may know of the session, to be told of its end
    _opened: dict[str, wire.Opened] = field(default_factory=dict)
    _gone: set[str] = field(default_factory=set)  # hops that failed since the session last ran
    _misses: Counter[str] = field(default_factory=Counter)
    _parts: list[Array] = field(default_factory=list)
    _avoid: dict[str, str] = field(default_factory=dict)
    _deadline: float = 0.0
    _trouble_since: float | None = None
    _trouble: str = ""
    _failures: int = 0
    _started: bool = False  # some hop has opened the session once
    _retry_at: float = 0.0
    _noticed: set[str] = field(default_factory=set)
    _pulse: HealthMonitor = field(default_factory=HealthMonitor)
    _leaving: set[str] = field(default_factory=set)  # servers that have asked the session to go
    _moving: bool = False  # a Plan is under way while the session runs
    _move_at: float = 0.0

    # --- what the user wants ---------------------------------------------------------------------------------------

    def generate(self, ids: Sequence[int], max_new_tokens: int, sampling: Sampling, now: float) -> list[Action]:
        """Continue `ids`, a sequence that may share a prefix with the one that the session holds.

        Raises:
            BadRequest: nothing to continue, or no room for it in the session.
        """
        self._check_idle()
        end = len(ids) + max_new_tokens
        if not ids:
            raise BadRequest("the prompt is empty: give at least one token")
        if max_new_tokens < 1:
            raise BadRequest("max_new_tokens must be at least 1")
        if end > self.max_length:
            raise BadRequest(
                f"{len(ids)} prompt tokens and {max_new_tokens} new ones do not fit a session of {self.max_length}: "
                f"shorten the prompt, ask for fewer tokens or open the session with a larger max_length"
            )
        shared = next((i for i, (a, b) in enumerate(zip(self.ids, ids, strict=False)) if a != b), None)
        self._valid = min(self._valid, len(ids) if shared is None else shared)
        self.ids = list(ids)
        return self._pursue(GenerateTask(len(ids), end, sampling), now)

    def step(
        self, ids: Sequence[int], position: int, output: Output, now: float, outputs: int | None = None
    ) -> list[Action]:
        """Compute `ids` at `position`, which may lie before the end of what the session holds.

        Args:
            outputs: for how many of the last ids an output is wanted; None: for all.

        Raises:
            BadRequest: no ids, no room for them, or a position that leaves a hole.
        """
        self._check_idle()
        if not ids:
            raise BadRequest("a step needs at least one token")
        if not 0 <= position <= len(self.ids):
            raise BadRequest(f"position {position} is outside the session's sequence of {len(self.ids)} tokens")
        if position + len(ids) > self.max_length:
            raise BadRequest(
                f"{position + len(ids)} tokens do not fit a session of {self.max_length}: "
                f"open it with a larger max_length"
            )
        self.ids[position:] = ids
        self._valid = min(self._valid, position)
        goal = StepTask(position, tuple(ids), output, len(ids) if outputs is None else min(outputs, len(ids)))
        if self._stepping:
            self._goal = goal
            return self._run((position,) * len(self.route), now)
        return self._pursue(goal, now)

    def cancel(self, now: float) -> list[Action]:
        """Stop what is under way. The hops keep what they have; the session can go on from there."""
        if self.phase is Phase.IDLE:
            return []
        ring = isinstance(self._goal, GenerateTask) and self.phase in (Phase.OPENING, Phase.RUNNING)
        self._finish()
        if not ring:
            return []
        # A newer epoch makes the turns of the ring that are still under way stale.
        self.epoch += 1
        return [Send(hop, self._open_message(i, None)) for i, hop in enumerate(self.route)]

    def close(self) -> list[Action]:
        self._finish()
        closing = [Send(hop, wire.Close(self.id)) for hop in self._asked.values()]
        self._stepping, self._asked, self._holders, self.route = False, {}, {}, ()
        return [*closing]

    # --- what happens ------------------------------------------------------------------------------------------------

    def routed(self, route: tuple[wire.Hop, ...], now: float) -> list[Action]:
        """The answer to `PlanRoute`."""
        if self.phase is not Phase.PLANNING and not self._moving:
            return []
        self._moving = False
        gone = [self._asked.pop(peer) for peer in self._asked.keys() - {hop.peer for hop in route}]
        # A server that is to compute other blocks than before gives up what it has cached.
        self._holders = {hop.peer: hop for hop in self._holders.values() if hop in route}
        self.route = route
        self._leaving &= {hop.peer for hop in route}
        return [*(Send(hop, wire.Close(self.id)) for hop in gone), *self._open(now)]

    @property
    def holders(self) -> set[str]:
        """Servers on which the session holds a reservation."""
        return set(self._holders)

    @property
    def peers(self) -> set[str]:
        """Servers that have to do with the session."""
        return {*self._asked, *(hop.peer for hop in self.route)}

    def no_route(self, error: SwarmError, now: float) -> list[Action]:
        """The answer to `PlanRoute` when nothing covers the model. Overload and loss are waited for, within limits."""
        if self._moving:
            self._moving = False
            return []
        if self.phase is not Phase.PLANNING:
            return []
        if self._trouble_since is None:
            self._trouble_since = now
        waited = now - self._trouble_since
        full = isinstance(error, Overloaded) or "busy" in self._avoid.values()
        if full and not isinstance(error, Overloaded):
            error = Overloaded(f"every server that could take the session is full: {self._trouble}", 1.0)
        hopeful = self._started or self._failures  # it worked, or the directory said that it would
        limit = self.busy_patience if full else self.patience if hopeful else 0.0
        if waited >= limit or isinstance(error, BadRequest | Expelled):
            if self._trouble and isinstance(error, Unavailable):
                error = Unavailable(f"{error} (last failure: {self._trouble})", getattr(error, "missing", ()))
            return self._give_up(error)
        self.phase = Phase.WAITING
        self._retry_at = now + RETRY_PAUSE
        # Whoever was full or failed may have recovered by then; those that are banned stay so in the planner.
        self._avoid.clear()
        return self._notice("waiting", f"waiting for a server: {error}")

    def received(self, peer: str, message: wire.AnyMessage, array: Array | None, now: float) -> list[Action]:
        """A message that carries this session's id."""
        if getattr(message, "epoch", None) != self.epoch or peer not in {hop.peer for hop in self.route}:
            return []
        match message:
            case wire.Opened() if self.phase is Phase.OPENING:
                return self._on_opened(peer, message, now)
            case wire.Alive():
                self._pulse.answered(peer, message)
            case wire.Leaving():
                return self._on_leaving(peer, now)
            case wire.Refused() if self.phase is Phase.OPENING:
                return self._on_refused(peer, message, now)
            case wire.Failed() if self.phase in (Phase.OPENING, Phase.RUNNING):
                return self._on_failed(peer, message, now)
            case wire.Failed():
                self._forget_route()
            case wire.Token() if self.phase is Phase.RUNNING and peer == self.route[-1].peer:
                return self._on_token(peer, message, now)
            case wire.Result() if self.phase is Phase.RUNNING and peer == self.route[-1].peer:
                return self._on_result(peer, message, array, now)
        return []

    def lost(self, peer: str, reason: LossReason, now: float) -> list[Action]:
        """The connection to a peer broke or could not be made."""
        if peer not in {hop.peer for hop in self.route}:
            return []
        if self.phase is Phase.RUNNING or (self.phase is Phase.OPENING and self._is_hopeless(peer, reason)):
            return self._recover({peer}, "the connection broke", now)
        if self.phase is Phase.IDLE:
            self._gone.add(peer)
            self._forget_route()
        return []

    def _is_hopeless(self, peer: str, reason: LossReason) -> bool:
        """Whether an attempt to connect was the last one worth making: a hop may have several addresses, and a gate
        may not have heard yet of a client that has just enrolled."""
        self._misses[peer] += 1
        hop = next(hop for hop in self.route if hop.peer == peer)
        tries = {"closed": 1, "unreachable": len(hop.addresses) + 1, "refused": REFUSALS}[reason]
        return self._misses[peer] >= tries

    def _forget_route(self) -> None:
        """The route broke while it was not used: look for one when it is."""
        self._stepping, self.route = False, ()

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        if self.phase is Phase.WAITING and now >= self._retry_at:
            return self._plan()
        if self.phase is Phase.OPENING and now >= self._deadline:
            silent = {hop.peer for hop in self.route} - self._opened.keys()
            return self._recover(silent, f"no answer within {OPEN_TIMEOUT:.0f} s", now)
        if self.phase is Phase.RUNNING and now >= self._deadline:
            return self._give_up(SessionFailed(f"no answer from the swarm for {PROGRESS_TIMEOUT:.0f} s"))
        if self.phase is Phase.RUNNING:
            return self._move(now) or self._watch(now)
        return []

    def _watch(self, now: float) -> list[Action]:
        """Find out who hangs when nothing comes."""
        match self._pulse.check({hop.peer for hop in self.route}, now):
            case SendProbes():
                return [Send(hop, wire.Probe(self.id, self.epoch)) for hop in self.route]
            case Unresponsive(peers, seconds):
                return self._recover(set(peers), f"no answer for {seconds:.0f} s", now)
            case Stalled():
                return self._again("work got lost on the way", now, same_route=True)
        return []

    def _on_leaving(self, peer: str, now: float) -> list[Action]:
        if self.phase is not Phase.IDLE:
            self._leaving.add(peer)
            return []
        # Nothing is under way: what is cached there is given up, and a route is looked for when there is a need.
        self._holders.pop(peer, None)
        hop = self._asked.pop(peer, None)
        self._forget_route()
        return [Send(hop, wire.Close(self.id))] if hop else []

    def _move(self, now: float) -> list[Action]:
        """Look for another place than a server that leaves, while the session goes on there."""
        leaving = self._leaving & {hop.peer for hop in self.route}
        if not leaving or now < self._move_at:
            return []
        self._move_at = now + MOVE_PAUSE
        self._moving = True
        keep = tuple(hop for hop in self.route if hop.peer not in leaving)
        return [*self._notice("leaving", "a server leaves; moving to another"), PlanRoute(self.without | leaving, keep)]

    # --- steps on the way --------------------------------------------------------------------------------------------

    def _check_idle(self) -> None:
        if self.phase is not Phase.IDLE:
            raise BadRequest("this session is busy: wait for what it does, or open another one")

    def _pursue(self, goal: GenerateTask | StepTask, now: float) -> list[Action]:
        self._goal = goal
        self._stepping = False
        self._avoid.clear()
        self._trouble_since, self._trouble, self._failures = None, "", 0
        self._noticed.clear()
        return self._open(now) if self.route else self._plan()

    def _plan(self) -> list[Action]:
        self.phase = Phase.PLANNING
        unfit = self._avoid.keys() | self._gone | self._leaving
        wanted = self._holders if self._started else {hop.peer: hop for hop in self.through}
        fit = [hop for peer, hop in wanted.items() if peer not in unfit]
        keep = tuple(sorted(fit, key=lambda hop: hop.start))
        return [PlanRoute(self.without | self._avoid.keys() | self._leaving, keep)]

    def _open(self, now: float) -> list[Action]:
        self.phase = Phase.OPENING
        self.epoch += 1
        self._opened = {}
        self._misses = Counter()
        self._asked.update({hop.peer: hop for hop in self.route})
        self._deadline = now + OPEN_TIMEOUT
        return [Send(hop, self._open_message(i, self._goal)) for i, hop in enumerate(self.route)]

    def _open_message(self, hop: int, goal: GenerateTask | StepTask | None) -> wire.Open:
        generation = None
        if isinstance(goal, GenerateTask) and hop == len(self.route) - 1:
            history = tuple(self.ids) if looks_back(goal.sampling) else ()
            generation = wire.Generation(goal.prompt_length, goal.end, goal.sampling, history)
        keep = self._kept(self.route[hop].peer, goal)
        return wire.Open(self.id, self.epoch, self.model, self.route, hop, self.max_length, keep, generation)

    def _kept(self, peer: str, goal: GenerateTask | StepTask | None) -> int:
        """The tokens that a server may go on with: the first one whose output is wanted must be computed anew."""
        wanted = goal.position if isinstance(goal, StepTask) else max(len(self.ids) - 1, 0)
        return min(self._valid, wanted) if peer in self._holders else 0

    def _on_opened(self, peer: str, message: wire.Opened, now: float) -> list[Action]:
        if not message.held <= message.position <= self._kept(peer, self._goal):
            return self._nonsense(peer, "it has more of the sequence than it should", now)
        self._opened[peer] = message
        self._holders[peer] = next(hop for hop in self.route if hop.peer == peer)
        self._started = True
        actions: list[Action] = [ReportSuccess(peer)]
        if len(self._opened) == len(self.route):
            opened = [self._opened[hop.peer] for hop in self.route]
            actions += self._run(replay.starts([hop.position for hop in opened], [hop.held for hop in opened]), now)
        return actions

    def _run(self, starts: tuple[int, ...], now: float) -> list[Action]:
        """Send the head what it lacks."""
        self.phase = Phase.RUNNING
        self._deadline = now + PROGRESS_TIMEOUT
        self._pulse.begin(now)
        self._gone.clear()
        self._parts = []
        self._valid = len(self.ids)
        output: Output
        outputs, output = (self._goal.outputs, self._goal.output) if isinstance(self._goal, StepTask) else (1, "logits")
        message = wire.Forward(self.id, self.epoch, starts[0], outputs, output, starts)
        return [Send(self.route[0], message, np.array(self.ids[starts[0] :], np.int32))]

    def _on_token(self, peer: str, message: wire.Token, now: float) -> list[Action]:
        if not isinstance(self._goal, GenerateTask) or message.position != len(self.ids):
            return []  # a duplicate
        if wrong := self._goal.nonsense(message):
            return self._nonsense(peer, wrong, now)
        self.ids.append(message.token)
        self._valid = len(self.ids)
        self._progress(now)
        if not message.finish:
            return [Emit(message)]
        self._finish()
        return [Emit(message), Finished()]

    def _on_result(self, peer: str, message: wire.Result, array: Array | None, now: float) -> list[Action]:
        if not isinstance(self._goal, StepTask) or array is None:
            return []
        if wrong := self._goal.nonsense(self._parts, array, message.last):
            return self._nonsense(peer, wrong, now)
        self._progress(now)
        if len(array):
            self._parts.append(array)
        if not message.last:
            return []
        output = StepOutput(self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts))
        self._finish()
        self._stepping = bool(self.route)
        return [Emit(output), Finished()]

    def _progress(self, now: float) -> None:
        self._deadline = now + PROGRESS_TIMEOUT
        self._pulse.progress({hop.peer for hop in self.route}, now)
        self._trouble_since, self._failures = None, 0
        self._noticed.clear()

    def _on_refused(self, peer: str, message: wire.Refused, now: float) -> list[Action]:
        if message.code == "too_long":
            return self._give_up(BadRequest(printable(message.reason)))
        self._avoid[peer] = "busy" if message.code == "too_many" else message.code
        self._gone.add(peer)
        return self._again(printable(message.reason), now)

    def _on_failed(self, peer: str, message: wire.Failed, now: float) -> list[Action]:
        reason = printable(message.reason)
        match message.code:
            case "bad_input":
                return self._give_up(BadRequest(reason))
            case "evicted" | "gap":
                return self._again(reason, now, same_route=True)
            case "lost_hop" if message.peer in {hop.peer for hop in self.route}:
                return self._recover({message.peer}, reason, now)
            case "leaving":
                return self._recover({peer}, reason, now, ban=False)
            case "compute" if self._failures:
                return self._give_up(SessionFailed(f"a server could not compute the session: {reason}"))
        return self._recover({peer}, reason, now)

    def _nonsense(self, peer: str, text: str, now: float) -> list[Action]:
        """An honest server would not have said that."""
        return self._recover({peer}, f"it answers nonsense: {text}", now)

    def _recover(self, peers: set[str], reason: str, now: float, ban: bool = True) -> list[Action]:
        """Go on without these servers."""
        names = ", ".join(f"{hop.start}:{hop.end}" for hop in self.route if hop.peer in peers)
        self._avoid.update(dict.fromkeys(peers, "lost"))
        self._gone |= peers
        self._pulse.forget(peers)
        bans: list[Action] = [ReportFailure(peer) for peer in sorted(peers) if ban]
        text = f"the server of blocks {names} was lost ({reason}); looking for another"
        return [*bans, *self._notice(names, text), *self._again(reason, now)]

    def _again(self, reason: str, now: float, same_route: bool = False) -> list[Action]:
        self._trouble = reason
        if self._trouble_since is None:
            self._trouble_since = now
        self._failures += 1
        waited = now - self._trouble_since
        if self._failures > MAX_FAILURES and waited >= self.patience and "busy" not in self._avoid.values():
            text = f"gave up after {self._failures} failures in {waited:.0f} s without progress; the last: {reason}"
            return self._give_up(SessionFailed(text))
        if self._failures > HASTY:
            self.phase = Phase.WAITING
            self._retry_at = now + min(RETRY_PAUSE * 2 ** (self._failures - HASTY - 1), LONGEST_PAUSE)
            return []
        return self._open(now) if same_route and self.route else self._plan()

    def _notice(self, subject: str, text: str) -> list[Action]:
        """Say it once until there is progress, however often the wording changes."""
        if subject in self._noticed:
            return []
        self._noticed.add(subject)
        return [Emit(Notice(text))]

    def _give_up(self, error: SwarmError) -> list[Action]:
        closing = self.close()
        return [*closing, Finished(error)]

    def _finish(self) -> None:
        self.phase = Phase.IDLE
        self._goal = None
        if self._leaving & {hop.peer for hop in self.route}:
            self._forget_route()
        self._leaving.clear()
