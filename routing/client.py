"""A peer's connection to its directory, kept by a thread of its own: leases are renewed while a server computes.

The directory's addresses in a join token are alternatives of one directory. When it is lost, the last view stays.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec
import zmq

from routing import wire
from routing.errors import DirectoryError
from routing.links import CONNECT_TIMEOUT, Context, Socket
from routing.membership import TTL, Announcement, Answer, Membership, announcement
from routing.security import Identity, JoinToken, SecurityError
from routing.view import View

__all__ = ["DirectoryClient", "DirectoryError", "View"]

log = logging.getLogger(__name__)

GOODBYE = 2.0  # s that `withdraw` waits at most


class DirectoryClient:
    """Everything may be called from any thread, but for `on_change`, which is called in the client's own.

    Args:
        identity: the peer's; it is enrolled with the token where that has not been done before.
        name: what people call the peer.
        timeout: seconds to wait for an answer of the directory.
        on_change: called with each new view; must not block, nor call the client.
    """

    def __init__(
        self,
        token: JoinToken,
        identity: Identity,
        name: str,
        *,
        timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[View], None] | None = None,
    ) -> None:
        self._token = token
        self._identity = identity
        self._name = name
        self._timeout = timeout
        self._clock = clock
        self._on_change = on_change
        self._view = View()
        self._changed = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()  # of the waker
        self._waker: Socket | None = None  # None: not started, or closed
        self._stopping = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- joining and leaving -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Enrol if need be, and wait for the first view. To be called once.

        Raises:
            DirectoryError: nobody answers, the token is refused, or somebody else answers. The client is closed then.
        """
        self._context: Context = zmq.Context()
        waker: Socket = self._context.socket(zmq.PAIR)
        self._woken: Socket = self._context.socket(zmq.PAIR)
        waker.bind("inproc://wake")
        self._woken.connect("inproc://wake")
        self._poller = zmq.Poller()
        self._poller.register(self._woken, zmq.POLLIN)
        try:
            self._membership = Membership(
                self._context, self._poller, self._token, self._identity, self._name, self._timeout, self._clock
            )
        except (SecurityError, zmq.ZMQError) as error:
            self._context.destroy(linger=0)
            raise DirectoryError(f"the join token names no directory that could be dialled: {error}") from error
        self._waker = waker
        self._thread = threading.Thread(target=self._run, name="directory-client", daemon=True)
        self._thread.start()
        # An address that swallows packets takes this long to be given up for the next one.
        patience = self._timeout + (len(self._token.addresses) - 1) * CONNECT_TIMEOUT / 1000
        try:
            self._membership.joined.result(patience)
        except TimeoutError:
            trouble = self._membership.trouble()
            self.close()
            raise DirectoryError(trouble) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Withdraw what is announced, and end the connection. A second call does nothing."""
        self.withdraw()
        with self._lock:
            waker, self._waker = self._waker, None
        if waker is not None:
            self._commands.append(self._stop)
            with suppress(zmq.Again):
                waker.send(b"", zmq.NOBLOCK)
            self._thread.join()
            waker.close(0)
            self._context.term()

    # --- what the directory says -------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """The latest complete view; empty before `start`."""
        return self._view

    def admits(self, key: str) -> bool:
        """Whether `key` is a member's; for the `Gate` of a server."""
        return key in self._view.members

    def wait_for(self, predicate: Callable[[View], bool], timeout: float) -> View:
        """The first view, now or later, of which `predicate` is true.

        Raises:
            TimeoutError: there was none within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self._view), timeout):
                raise TimeoutError(f"the swarm did not become what was waited for within {timeout:g} s")
            return self._view

    # --- what a server says ------------------------------------------------------------------------------------------

    def place(self, server: wire.Server, capacity: int) -> tuple[int, int]:
        """The span of at most `capacity` blocks that this server should take; the directory holds it for a while.

        Raises:
            DirectoryError: the directory says no, or nothing.
        """
        _check(server)
        match self._ask(lambda request: wire.Place(request, server, capacity, TTL)):
            case wire.Placed(_, start, end):
                return start, end
            case answer:
                raise DirectoryError(f"the directory answered a placement with {type(answer).__name__}: update it")

    def announce(self, server: wire.Server | wire.Router) -> None:
        """Tell everybody of this server or router, and go on doing so until `withdraw`.

        Raises:
            DirectoryError: the directory says no, or nothing. What was announced before stays.
        """
        _check(server)
        self._ask(lambda request: announcement(request, server))

    def update(self, server: wire.Server) -> None:
        """Replace what is announced, without waiting; does nothing while nothing is.

        Mere figures (load, free memory) are sent about once a second, everything else at once.

        Raises:
            DirectoryError: no message can say this.
        """
        _check(server)
        with suppress(DirectoryError):  # closed: there is nothing to replace
            self._do(lambda: self._membership.update(server))

    def withdraw(self) -> None:
        """Leave. Waits for the directory, but not for long: without its answer the lease runs out by itself."""
        answer: Future[Answer] = Future()
        with suppress(DirectoryError, TimeoutError):
            self._do(lambda: self._membership.leave(answer))
            answer.result(min(self._timeout, GOODBYE))

    # --- between the threads -----------------------------------------------------------------------------------------

    def _ask(self, make: Callable[[int], Announcement | wire.Place]) -> Answer:
        answer: Future[Answer] = Future()
        self._do(lambda: self._membership.ask(make, answer))
        try:
            return answer.result(self._timeout)
        except TimeoutError:
            self._do(lambda: self._membership.forget(answer))
            where = self._membership.where
            raise DirectoryError(f"the directory at {where} did not answer within {self._timeout:g} s") from None

    def _do(self, command: Callable[[], None]) -> None:
        with self._lock:
            if self._waker is None:
                raise DirectoryError("there is no connection to the directory: it was closed, or not started")
            self._commands.append(command)
            with suppress(zmq.Again):  # so many wakes wait already that the thread is about to look
                self._waker.send(b"", zmq.NOBLOCK)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._poller.poll(int(self._membership.patience() * 1000) + 1)
                while self._woken.poll(0):
                    self._woken.recv()
                while self._commands:
                    self._commands.popleft()()
                if self._membership.step():
                    self._publish(self._membership.view)
                if self._membership.is_complete and not self._membership.joined.done():
                    self._membership.joined.set_result(None)
        finally:
            self._membership.close()
            self._woken.close(0)

    def _stop(self) -> None:
        self._stopping = True

    def _publish(self, view: View) -> None:
        with self._changed:
            self._view = view
            self._changed.notify_all()
        if self._on_change is not None:
            try:
                self._on_change(view)
            except Exception:
                log.exception("the callback for changes of the swarm failed")


def _check(server: wire.Server | wire.Router) -> None:
    """The directory drops what is no message, and would leave the caller waiting."""
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(server), type=type(server))
    except msgspec.ValidationError as error:
        raise DirectoryError(f"this {type(server).__name__.lower()} cannot be announced: {error}") from error
