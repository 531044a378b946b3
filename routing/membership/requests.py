"""A request to several directories: which of them is asked, and what their answers mean together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from routing.membership.directory_link import Announced, Answer, Asking, DirectoryLink, announcement


class AskAny:
    """Ask any: asks the first directory that is connected, and another when that one is lost."""

    def __init__(self, make: Callable[[int], Asking], answer: Future[Answer]) -> None:
        self._make = make
        self._answer = answer
        self._asked: DirectoryLink | None = None
        self._theirs: Future[Answer] = Future()

    def advance(self, links: Sequence[DirectoryLink]) -> bool:
        """Do what is due; whether there is nothing more to do."""
        if self._theirs.done():
            _pass_on(self._theirs, self._answer)
            return True
        if self._asked is None or self._asked not in links or not self._asked.is_up:
            connected = next((link for link in links if link.is_up), None)
            if connected is not None:
                self.forget()
                self._asked, self._theirs = connected, Future()
                connected.ask(self._make, self._theirs)
        return False

    def forget(self) -> None:
        if self._asked is not None:
            self._asked.forget(self._theirs)


class AskAll:
    """Announces to all directories. A single refusal is one; else it is done once all that are connected have said so.

    Args:
        before: what was announced, and is again after a refusal.
    """

    def __init__(self, server: Announced, before: Announced | None, answer: Future[Answer]) -> None:
        self.server = server
        self._before = before
        self._answer = answer
        self._asked: dict[DirectoryLink, Future[Answer]] = {}

    def advance(self, links: Sequence[DirectoryLink]) -> bool:
        """Do what is due; whether there is nothing more to do."""
        for link in links:
            if link.is_up and link not in self._asked:
                self._asked[link] = Future()
                link.ask(lambda request: announcement(request, self.server), self._asked[link])
        answers = [answer for link, answer in self._asked.items() if link in links and answer.done()]
        refusal = next((answer for answer in answers if answer.exception() is not None), None)
        if refusal is not None:
            self.forget()
            for link in links:
                link.hold(self._before)
            _pass_on(refusal, self._answer)
            return True
        waiting = [m for m in links if m.is_up and not self._asked[m].done()]
        if waiting or not answers:
            return False
        self.forget()
        for link in links:
            link.hold(self.server)
        _pass_on(answers[0], self._answer)
        return True

    def forget(self) -> None:
        for link, answer in self._asked.items():
            link.forget(answer)


def _pass_on(theirs: Future[Answer], ours: Future[Answer]) -> None:
    error = theirs.exception()
    if error is not None:
        ours.set_exception(error)
    else:
        ours.set_result(theirs.result())
