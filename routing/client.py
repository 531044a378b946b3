"""A peer's connection to its swarm's directories, kept by a thread of its own: leases are renewed while a server
computes.

It is connected to every directory of its join token, and to those that they know of. What it announces goes to all, its
view is what they say together, and any of them will do. When all are lost, the last view stays.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

import msgspec
import zmq

from routing import wire
from routing.addresses import is_dialable
from routing.codes import RefusalCode
from routing.errors import DirectoryError
from routing.links import CONNECT_TIMEOUT, Context
from routing.membership.directory_link import TTL, Announced, Answer, DirectoryLink
from routing.membership.enrolment import Enrolment
from routing.membership.requests import AskAll, AskAny
from routing.security import DirectoryAddress, Identity, JoinToken, SecurityError
from routing.thread import CommandQueue
from routing.view import View, union

__all__ = ["DirectoryClient", "DirectoryError", "View"]

log = logging.getLogger(__name__)

GOODBYE = 2.0  # s that `withdraw` waits at most
MAX_DIRECTORIES = 16  # that one peer is connected to


class DirectoryClient:
    """Everything may be called from any thread, but for `on_change`, which is called in the client's own.

    Args:
        identity: the peer's; it is enrolled with the token where that has not been done before.
        name: what people call the peer.
        role: what it is, for people: `server`, `client`, `gateway`.
        timeout: seconds to wait for an answer of the directory.
        on_change: called with each new view; must not block, nor call the client.
    """

    def __init__(
        self,
        token: JoinToken,
        identity: Identity,
        name: str,
        *,
        role: str = "",
        timeout: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[View], None] | None = None,
    ) -> None:
        self._token = token
        self._identity = identity
        self.name = name[:256]
        self._role = role
        self._timeout = timeout
        self._clock = clock
        self._on_change = on_change
        self._view = View()
        self._changed = threading.Condition()
        self._commands: CommandQueue | None = None  # None: not started
        self._stopping = False
        self._links: dict[str, DirectoryLink] = {}  # by the directory's key, those of the token first
        self._changes: list[tuple[bool, View]] = []
        self._requests: dict[Future[Answer], AskAny | AskAll] = {}
        self._server: Announced | None = None  # what is announced
        self._revision = 0
        self._joined: Future[None] = Future()

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
            DirectoryError: no directory answers, the token is refused, or another peer answers. The client is closed
            then.
        """
        self._context: Context = zmq.Context()
        self._poller = zmq.Poller()
        commands = CommandQueue(self._context, self._poller)
        try:
            for site in self._token.directories[:MAX_DIRECTORIES]:
                self._join(site)
        except (SecurityError, zmq.ZMQError) as error:
            self._context.destroy(linger=0)
            raise DirectoryError(f"the join token names no directory that could be dialled: {error}") from error
        self._commands = commands
        self._thread = threading.Thread(target=self._run, args=(commands,), name="directory-client", daemon=True)
        self._thread.start()
        # An address that swallows packets takes this long to be given up for the next one.
        most = max(len(site.addresses) for site in self._token.directories)
        patience = self._timeout + (most - 1) * CONNECT_TIMEOUT / 1000
        try:
            self._joined.result(patience)
        except TimeoutError:
            trouble = self._trouble()
            self.close()
            raise DirectoryError(trouble) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Withdraw what is announced, and end the connection. A second call does nothing."""
        self.withdraw()
        if self._commands is not None and self._commands.put(self._stop, last=True):
            self._thread.join()
            self._context.term()

    # --- what the directory says -------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """The latest complete view; empty before `start`."""
        return self._view

    def admits(self, key: str) -> bool:
        """Whether `key` is a member's whom no directory has expelled; for the `Gate` and `Listener` of a server."""
        return key in self._view.members

    def expelled(self, key: str) -> bool:
        """Whether `key` was a member's; for the `Dialer` of a server, whose own view may lag behind a newcomer."""
        return key in self._view.expelled

    @property
    def banished(self) -> DirectoryError | None:
        """What a directory said that has expelled this peer itself; no peer deals with it any longer."""
        denied = [link.denied for link in list(self._links.values())]
        return next((error for error in denied if error is not None and error.code == RefusalCode.EXPELLED), None)

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

    def place(self, server: wire.ServerInfo, capacity: int) -> tuple[int, int]:
        """The span of at most `capacity` blocks that this server should take; the directory holds it for a while.

        Raises:
            DirectoryError: the directory says no, or nothing.
        """
        _check(server)
        answer: Future[Answer] = Future()
        request = AskAny(lambda request: wire.Place(request, server, capacity, TTL), answer)
        match self._ask(partial(self._requests.__setitem__, answer, request), answer):
            case wire.Placed(_, start, end):
                return start, end
            case other:
                raise DirectoryError(f"the directory answered a placement with {type(other).__name__}: update it")

    def announce(self, server: Announced) -> None:
        """Tell all peers of this server or router, and go on doing so until `withdraw`.

        Raises:
            DirectoryError: a directory says no, or none says anything. What was announced before stays.
        """
        _check(server)
        answer: Future[Answer] = Future()
        self._ask(partial(self._announce, server, answer), answer)

    def update(self, server: wire.ServerInfo) -> None:
        """Replace what is announced, without waiting; does nothing while nothing is.

        Mere figures (load, free memory) are sent about once a second, everything else at once.

        Raises:
            DirectoryError: no message can say this.
        """
        _check(server)
        with suppress(DirectoryError):  # closed: there is nothing to replace
            self._do(partial(self._update, server))

    def withdraw(self) -> None:
        """Leave. Waits for the directory, but not for long: without its answer the lease runs out by itself."""
        goodbyes: Future[list[Future[Answer]]] = Future()
        with suppress(DirectoryError, TimeoutError):
            self._do(partial(self._leave, goodbyes))
            wait(goodbyes.result(min(self._timeout, GOODBYE)), min(self._timeout, GOODBYE))

    # --- between the threads -----------------------------------------------------------------------------------------

    def _ask(self, begin: Callable[[], None], answer: Future[Answer]) -> Answer:
        self._do(begin)
        try:
            return answer.result(self._timeout)
        except TimeoutError:
            self._do(partial(self._forget, answer))
            where = " or ".join(link.where for link in list(self._links.values()))
            raise DirectoryError(f"the directory at {where} did not answer within {self._timeout:g} s") from None

    def _forget(self, answer: Future[Answer]) -> None:
        request = self._requests.pop(answer, None)
        if request is not None:
            request.forget()

    def _do(self, command: Callable[[], None]) -> None:
        if self._commands is None or not self._commands.put(command):
            raise DirectoryError("there is no connection to the directory: it was closed, or not started")

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self, commands: CommandQueue) -> None:
        try:
            while not self._stopping:
                patience = min(link.patience() for link in self._links.values())
                self._poller.poll(int(patience * 1000) + 1)
                commands.run()
                for link in self._links.values():
                    link.step()
                self._answer_requests()
                self._look()
        finally:
            for link in self._links.values():
                link.close()
            commands.close()

    def _answer_requests(self) -> None:
        links = list(self._links.values())
        for answer, request in list(self._requests.items()):
            if request.advance(links):
                del self._requests[answer]
                if isinstance(request, AskAll) and answer.exception() is None:
                    self._server = request.server

    def _look(self) -> None:
        """Take in what the directories say together, and meet those that we did not know."""
        links = self._links.values()
        said = [(link.is_current, link.view) for link in links]
        if any(current for current, _ in said):
            if not _same(said, self._changes):
                self._changes = said
                view = union((v for current, v in said if current), (v for current, v in said if not current))
                if view != self._view:
                    self._publish(view)
                self._meet(view)
            if not self._joined.done():
                self._joined.set_result(None)
        elif not self._joined.done():
            denied = [link.denied for link in links if link.denied is not None]
            if denied and all(link.is_down for link in links):
                self._joined.set_exception(denied[0])

    def _meet(self, view: View) -> None:
        """Join the directories that the others know of, and leave those that were expelled."""
        for key in self._links.keys() & view.expelled:
            if len(self._links) > 1:
                self._links.pop(key).close()
        for site in view.directories.values():
            link = self._links.get(site.key)
            if link is not None:
                link.move(site.addresses)
            elif len(self._links) < MAX_DIRECTORIES and all(map(is_dialable, site.addresses)):
                log.info("there is a directory at %s, too", " or ".join(site.addresses))
                self._join(DirectoryAddress(site.key, site.addresses))

    def _join(self, site: DirectoryAddress) -> None:
        admission = Enrolment(
            self._context,
            self._poller,
            site,
            self._token.secret,
            self._identity,
            wire.Enrol(0, self._identity.public, self.name, self._role),
            self._timeout,
            self._clock,
            lambda: self._token.expiry(time.time()),
        )
        self._links[site.key] = DirectoryLink(admission, self._identity.public, self._timeout, self._clock)
        self._links[site.key].hold(self._server)

    def _trouble(self) -> str:
        links = list(self._links.values())
        denied = next((link for link in links if link.denied is not None), None)
        return "; ".join(dict.fromkeys(m.trouble() for m in ([denied] if denied is not None else links)))

    def _announce(self, server: Announced, answer: Future[Answer]) -> None:
        said = self._revised(server) if isinstance(server, wire.ServerInfo) else server
        self._requests[answer] = AskAll(said, self._server, answer)

    def _update(self, server: wire.ServerInfo) -> None:
        if self._server is not None:
            self._server = revised = self._revised(server)
            for link in self._links.values():
                link.update(revised)

    def _revised(self, server: wire.ServerInfo) -> wire.ServerInfo:
        """With the number by which directories and peers tell what is later; it grows over restarts, too."""
        known = self._server
        if isinstance(known, wire.ServerInfo) and known == msgspec.structs.replace(server, revision=known.revision):
            return known
        self._revision = max(self._revision + 1, int(time.time() * 1000))
        return msgspec.structs.replace(server, revision=self._revision)

    def _leave(self, goodbyes: Future[list[Future[Answer]]]) -> None:
        self._server = None
        answers: list[Future[Answer]] = [Future() for _ in self._links]
        for link, answer in zip(self._links.values(), answers, strict=True):
            link.leave(answer)
        goodbyes.set_result(answers)

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


def _check(server: wire.ServerInfo | wire.RouterInfo) -> None:
    """The directory drops what is no message, and would leave the caller waiting."""
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(server), type=type(server))
    except msgspec.ValidationError as error:
        raise DirectoryError(f"this {type(server).__name__.lower()} cannot be announced: {error}") from error


def _same(one: list[tuple[bool, View]], other: list[tuple[bool, View]]) -> bool:
    """By identity: views are never changed, and large."""
    return len(one) == len(other) and all(a[0] == b[0] and a[1] is b[1] for a, b in zip(one, other, strict=True))
