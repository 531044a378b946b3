r"""Remote session: the client's side of one session, as a state machine without sockets, threads and clocks.

Each method takes something that happened and a time, and gives back what is to be done, as a list of actions. The
driver (`swarm.client.driver`) carries them out. The client keeps every token id of the sequence, so whatever is lost,
it can start a newer epoch on another route and replay: hops that survived keep their KV cache up to the last token that
the client has, and newcomers are fed by the hop before them, or from the token ids (`swarm.client.replay`).

           generate(), step()             routed()                 every hop: Opened
    IDLE ----------------------> PLANNING ---------> OPENING ---------------------------> RUNNING
     ^  \                        ^  ^   \ no_route()  |  ^                                |  |
     |   \ with a route that     |  |    v            |  | Failed: gap, evicted; stalled  |  |
     |    \ is still good        |  |  WAITING        |  +--------------------------------+  |
     |     +--------------------> OPENING |           |                                      |
     |                            |  +----+ tick()    | a hop: Refused, lost, silent         |
     |                            +-------------------+--------------------------------------+
     |
     +--- from every phase: the last Token or Result, cancel(), close(), patience or failures used up

A hop is lost when its connection breaks, or when it does not answer in time (`swarm.client.health`). After
`FAST_RETRIES` failures in a row the way back to PLANNING leads by WAITING. While RUNNING, a hop that leaves is
replaced: the answer to that `PlanRoute` is a new route, which is opened at once.
"""

from __future__ import annotations

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
from swarm.client.server_record import ServerRecords
from swarm.client.tasks import GenerateTask, StepTask
from swarm.errors import BadRequest, Expelled, Overloaded, SessionFailed, SwarmError, Unavailable
from swarm.sampling import Sampling, looks_back
from swarm.system.logs import printable

OPEN_TIMEOUT = 10.0  # s for a hop to answer that a session is open
PROGRESS_TIMEOUT = 300.0  # s without a token or a result until the session is given up; a prompt may take long
RETRY_PAUSE = 0.5  # s between two looks for a route
LONGEST_PAUSE = 4.0  # s, when one attempt after the other fails
REFUSALS = 15  # refused handshakes in a row until a server is taken for lost
FAST_RETRIES = 3  # failures in a row after which the next attempt waits
MAX_FAILURES = 8  # without any progress in between, and never before the session's patience is over
MOVE_PAUSE = 1.0  # s between two looks for another place than a server that leaves


class Phase(Enum):
    """Phase of a session; the picture of this module shows the ways between them."""

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
    _task: GenerateTask | StepTask | None = None
    _is_stepping: bool = False  # the hops are open without a ring, and hold the whole sequence
    _servers: ServerRecords = field(default_factory=ServerRecords)
    _num_valid_tokens: int = 0  # tokens of `ids` that the cache of a server which `is_holder` begins with
    _result_parts: list[Array] = field(default_factory=list)
    _deadline: float = 0.0
    _failing_since: float | None = None
    _last_failure: str = ""
    _num_failures: int = 0
    _was_open: bool = False  # some hop has opened the session once
    _retry_at: float = 0.0
    _noted: set[str] = field(default_factory=set)
    _health: HealthMonitor = field(default_factory=HealthMonitor)
    _is_replanning: bool = False  # a Plan is under way while the session runs
    _replan_at: float = 0.0

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
        self._num_valid_tokens = min(self._num_valid_tokens, len(ids) if shared is None else shared)
        self.ids = list(ids)
        return self._begin_task(GenerateTask(len(ids), end, sampling), now)

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
        self._num_valid_tokens = min(self._num_valid_tokens, position)
        task = StepTask(position, tuple(ids), output, len(ids) if outputs is None else min(outputs, len(ids)))
        if self._is_stepping:
            self._task = task
            return self._begin_running((position,) * len(self.route), now)
        return self._begin_task(task, now)

    def cancel(self, now: float) -> list[Action]:
        """Stop what is under way. The hops keep what they have; the session can go on from there."""
        if self.phase is Phase.IDLE:
            return []
        under_way = self.phase in (Phase.OPENING, Phase.RUNNING)
        self._is_stepping = False
        self._finish()
        if not under_way:
            return []
        # A newer epoch makes what is still under way, turns of the ring and results of a step, stale.
        self.epoch += 1
        return [Send(hop, self._open_message(i, None)) for i, hop in enumerate(self.route)]

    def close(self) -> list[Action]:
        self._finish()
        self._forget_route()
        return self._close_on(self._servers.dismiss(self._servers.keys()))

    def _close_on(self, hops: list[wire.Hop]) -> list[Action]:
        return [Send(hop, wire.Close(self.id)) for hop in hops]

    # --- what happens ------------------------------------------------------------------------------------------------

    def routed(self, route: tuple[wire.Hop, ...], now: float) -> list[Action]:
        """The answer to `PlanRoute`."""
        if self.phase is not Phase.PLANNING and not self._is_replanning:
            return []
        self._is_replanning = False
        self.route = route
        closing = self._close_on(self._servers.change_route(route))
        return [*closing, *self._open(now)]

    @property
    def reserved_on(self) -> frozenset[str]:
        """Servers on which the session holds a reservation."""
        return self._servers.reserved

    @property
    def peers(self) -> set[str]:
        """Servers that have to do with the session."""
        return self._peers | self._servers.informed

    @property
    def _peers(self) -> set[str]:
        """Servers of the route."""
        return {hop.peer for hop in self.route}

    @property
    def was_open(self) -> bool:
        """Whether a server has opened the session once; until then it does not wait for one."""
        return self._was_open

    def no_route(self, error: SwarmError, now: float) -> list[Action]:
        """The answer to `PlanRoute` when nothing covers the model. Overload and loss are waited for, within limits."""
        if self._is_replanning:
            self._is_replanning = False
            return []
        if self.phase is not Phase.PLANNING:
            return []
        if self._failing_since is None:
            self._failing_since = now
        waited = now - self._failing_since
        full = isinstance(error, Overloaded) or self._servers.any_full
        if full and not isinstance(error, Overloaded):
            error = Overloaded(f"every server that could take the session is full: {self._last_failure}", 1.0)
        hopeful = self._was_open or self._num_failures  # it worked, or the directory said that it would
        limit = self.busy_patience if full else self.patience if hopeful else 0.0
        if waited >= limit or isinstance(error, BadRequest | Expelled):
            if self._last_failure and isinstance(error, Unavailable):
                error = Unavailable(f"{error} (last failure: {self._last_failure})", getattr(error, "missing", ()))
            return self._give_up(error)
        self.phase = Phase.WAITING
        self._retry_at = now + RETRY_PAUSE
        # What was full, failed or left may be back by then; what is banned or drains is known to the planner.
        self._servers.forgive()
        return self._notice("waiting", f"waiting for a server: {error}")

    def received(self, peer: str, message: wire.AnyMessage, array: Array | None, now: float) -> list[Action]:
        """A message that carries this session's id."""
        if getattr(message, "epoch", None) != self.epoch or peer not in self._peers:
            return []
        match message:
            case wire.Opened() if self.phase is Phase.OPENING:
                return self._on_opened(peer, message, now)
            case wire.Alive():
                self._health.answered(peer, message)
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
        if peer not in self._peers:
            return []
        if self.phase is Phase.RUNNING or (self.phase is Phase.OPENING and self._is_hopeless(peer, reason)):
            return self._recover({peer}, "the connection broke", now)
        if self.phase is Phase.IDLE:
            self._servers[peer].has_failed = True
            self._forget_route()
        return []

    def _is_hopeless(self, peer: str, reason: LossReason) -> bool:
        """Whether an attempt to connect was the last one worth making: a hop may have several addresses, and a server
        may not have heard yet of a client that has just enrolled."""
        server = self._servers[peer]
        server.failed_dials += 1
        limit = {"closed": 1, "unreachable": len(server.hop.addresses) + 1, "refused": REFUSALS}[reason]
        return server.failed_dials >= limit

    def _forget_route(self) -> None:
        """The route broke while it was not used: look for one when it is."""
        self._is_stepping, self.route = False, ()

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        if self.phase is Phase.WAITING and now >= self._retry_at:
            return self._plan()
        if self.phase is Phase.OPENING and now >= self._deadline:
            silent = {peer for peer in self._peers if self._servers[peer].opened is None}
            return self._recover(silent, f"no answer within {OPEN_TIMEOUT:.0f} s", now)
        if self.phase is Phase.RUNNING and now >= self._deadline:
            return self._give_up(SessionFailed(f"no answer from the swarm for {PROGRESS_TIMEOUT:.0f} s"))
        if self.phase is Phase.RUNNING:
            return self._replace_leaving(now) or self._check_health(now)
        return []

    def _check_health(self, now: float) -> list[Action]:
        """Find out who hangs when nothing comes."""
        match self._health.check(self._peers, now):
            case SendProbes():
                return [Send(hop, wire.Probe(self.id, self.epoch)) for hop in self.route]
            case Unresponsive(peers, seconds):
                return self._recover(set(peers), f"no answer for {seconds:.0f} s", now)
            case Stalled():
                return self._retry("work got lost on the way", now, same_route=True)
        return []

    def _on_leaving(self, peer: str, now: float) -> list[Action]:
        if self.phase is not Phase.IDLE:
            self._servers[peer].is_leaving = True
            return []
        # Nothing is under way: what is cached there is given up, and a route is looked for when there is a need.
        self._forget_route()
        return self._close_on(self._servers.dismiss([peer]))

    def _replace_leaving(self, now: float) -> list[Action]:
        """Look for another place than a server that leaves, while the session goes on there."""
        leaving = self._servers.leaving & self._peers
        if not leaving or now < self._replan_at:
            return []
        self._replan_at = now + MOVE_PAUSE
        self._is_replanning = True
        keep = tuple(hop for hop in self.route if hop.peer not in leaving)
        return [*self._notice("leaving", "a server leaves; moving to another"), PlanRoute(self.without | leaving, keep)]

    # --- steps on the way --------------------------------------------------------------------------------------------

    def _check_idle(self) -> None:
        if self.phase is not Phase.IDLE:
            raise BadRequest("this session is busy: wait for what it does, or open another one")

    def _begin_task(self, task: GenerateTask | StepTask, now: float) -> list[Action]:
        self._task = task
        self._is_stepping = False
        self._servers.forgive()
        self._failing_since, self._last_failure, self._num_failures = None, "", 0
        self._noted.clear()
        return self._open(now) if self.route else self._plan()

    def _plan(self) -> list[Action]:
        self.phase = Phase.PLANNING
        avoid = self._servers.avoided
        known = self._servers.cached_hops() if self._was_open else self.through
        keep = tuple(hop for hop in known if hop.peer not in avoid)
        return [PlanRoute(self.without | avoid, keep)]

    def _open(self, now: float) -> list[Action]:
        self.phase = Phase.OPENING
        self.epoch += 1
        self._servers.begin_epoch(self.route)
        self._deadline = now + OPEN_TIMEOUT
        return [Send(hop, self._open_message(i, self._task)) for i, hop in enumerate(self.route)]

    def _open_message(self, hop: int, task: GenerateTask | StepTask | None) -> wire.Open:
        generation = None
        if isinstance(task, GenerateTask) and hop == len(self.route) - 1:
            history = tuple(self.ids) if looks_back(task.sampling) else ()
            generation = wire.Generation(task.prompt_length, task.end, task.sampling, history)
        keep = self._reusable_tokens(self.route[hop].peer, task)
        return wire.Open(self.id, self.epoch, self.model, self.route, hop, self.max_length, keep, generation)

    def _reusable_tokens(self, peer: str, task: GenerateTask | StepTask | None) -> int:
        """The tokens that a server may go on with: the first one whose output is wanted must be computed anew."""
        wanted = task.position if isinstance(task, StepTask) else max(len(self.ids) - 1, 0)
        return min(self._num_valid_tokens, wanted) if self._servers[peer].is_holder else 0

    def _on_opened(self, peer: str, message: wire.Opened, now: float) -> list[Action]:
        if not message.held <= message.position <= self._reusable_tokens(peer, self._task):
            return self._on_violation(peer, "it has more of the sequence than it should", now)
        self._servers[peer].opened = message
        self._servers[peer].is_holder = self._was_open = True
        actions: list[Action] = [ReportSuccess(peer)]
        opened = self._servers.opened(self.route)
        if len(opened) == len(self.route):
            starts = replay.starts([hop.position for hop in opened], [hop.held for hop in opened])
            actions += self._begin_running(starts, now)
        return actions

    def _begin_running(self, starts: tuple[int, ...], now: float) -> list[Action]:
        """Send the head what it lacks."""
        self.phase = Phase.RUNNING
        self._deadline = now + PROGRESS_TIMEOUT
        self._health.begin(now)
        self._servers.begin_running()
        self._result_parts = []
        self._num_valid_tokens = len(self.ids)
        output: Output
        outputs, output = (self._task.outputs, self._task.output) if isinstance(self._task, StepTask) else (1, "logits")
        message = wire.Forward(self.id, self.epoch, starts[0], outputs, output, starts)
        return [Send(self.route[0], message, np.array(self.ids[starts[0] :], np.int32))]

    def _on_token(self, peer: str, message: wire.Token, now: float) -> list[Action]:
        if not isinstance(self._task, GenerateTask) or message.position != len(self.ids):
            return []  # a duplicate
        if wrong := self._task.violation(message):
            return self._on_violation(peer, wrong, now)
        self.ids.append(message.token)
        self._num_valid_tokens = len(self.ids)
        self._progress(now)
        if not message.finish:
            return [Emit(message)]
        self._finish()
        return [Emit(message), Finished()]

    def _on_result(self, peer: str, message: wire.Result, array: Array | None, now: float) -> list[Action]:
        if not isinstance(self._task, StepTask) or array is None:
            return []
        if wrong := self._task.violation(self._result_parts, array, message.last):
            return self._on_violation(peer, wrong, now)
        self._progress(now)
        if len(array):
            self._result_parts.append(array)
        if not message.last:
            return []
        parts = self._result_parts
        output = StepOutput(parts[0] if len(parts) == 1 else np.concatenate(parts))
        self._finish()
        self._is_stepping = bool(self.route)
        return [Emit(output), Finished()]

    def _progress(self, now: float) -> None:
        self._deadline = now + PROGRESS_TIMEOUT
        self._health.progress(self._peers, now)
        self._failing_since, self._num_failures = None, 0
        self._noted.clear()

    def _on_refused(self, peer: str, message: wire.Refused, now: float) -> list[Action]:
        if message.code == wire.RefusalCode.TOO_LONG:
            return self._give_up(BadRequest(printable(message.reason)))
        self._servers.fail([peer], wire.RefusalCode.BUSY if message.code == wire.RefusalCode.TOO_MANY else message.code)
        return self._retry(printable(message.reason), now)

    def _on_failed(self, peer: str, message: wire.Failed, now: float) -> list[Action]:
        reason = printable(message.reason)
        match message.code:
            case wire.FailureCode.BAD_INPUT:
                return self._give_up(BadRequest(reason))
            case wire.FailureCode.EVICTED | wire.FailureCode.GAP:
                return self._retry(reason, now, same_route=True)
            case wire.FailureCode.LOST_HOP if message.peer in self._peers:
                return self._recover({message.peer}, reason, now)
            case wire.FailureCode.LEAVING:
                return self._recover({peer}, reason, now, ban=False)
            case wire.FailureCode.COMPUTE if self._num_failures:
                return self._give_up(SessionFailed(f"a server could not compute the session: {reason}"))
        return self._recover({peer}, reason, now)

    def _on_violation(self, peer: str, text: str, now: float) -> list[Action]:
        """An honest server would not have said that."""
        return self._recover({peer}, f"it breaks the protocol: {text}", now)

    def _recover(self, peers: set[str], reason: str, now: float, ban: bool = True) -> list[Action]:
        """Go on without these servers."""
        names = ", ".join(f"{hop.start}:{hop.end}" for hop in self.route if hop.peer in peers)
        self._servers.fail(peers, "lost")
        self._health.forget(peers)
        bans: list[Action] = [ReportFailure(peer) for peer in sorted(peers) if ban]
        text = f"the server of blocks {names} was lost ({reason}); looking for another"
        return [*bans, *self._notice(names, text), *self._retry(reason, now)]

    def _retry(self, reason: str, now: float, same_route: bool = False) -> list[Action]:
        self._last_failure = reason
        if self._failing_since is None:
            self._failing_since = now
        self._num_failures += 1
        waited = now - self._failing_since
        if self._num_failures > MAX_FAILURES and waited >= self.patience and not self._servers.any_full:
            text = f"gave up after {self._num_failures} failures in {waited:.0f} s without progress; the last: {reason}"
            return self._give_up(SessionFailed(text))
        if self._num_failures > FAST_RETRIES:
            self.phase = Phase.WAITING
            self._retry_at = now + min(RETRY_PAUSE * 2 ** (self._num_failures - FAST_RETRIES - 1), LONGEST_PAUSE)
            return []
        return self._open(now) if same_route and self.route else self._plan()

    def _notice(self, subject: str, text: str) -> list[Action]:
        """Say it once until there is progress, however often the wording changes."""
        if subject in self._noted:
            return []
        self._noted.add(subject)
        return [Emit(Notice(text))]

    def _give_up(self, error: SwarmError) -> list[Action]:
        closing = self.close()
        return [*closing, Finished(error)]

    def _finish(self) -> None:
        self.phase = Phase.IDLE
        self._task = None
        if self._servers.leaving & self._peers:
            self._forget_route()
        self._servers.forgive()
