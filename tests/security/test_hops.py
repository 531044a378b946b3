"""Servers that lie to clients of theirs, over real sockets. `tests/swarm/client/test_hostile_hops.py` has every lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from routing import wire
from swarm import SessionFailed, SwarmClient
from swarm.client.session import RemoteSession
from tests.swarm.live import MODEL, Live, directory, serving
from tests.swarm.toy import greedy, logits

PROMPT = [5, 17, 3, 42, 8]

Lie = Callable[[Any], Any]  # what a Token or a Result becomes, or the array that goes with it


@contextmanager
def swarm_with_a_liar(folder: Path, lie: Lie = lambda honest: honest) -> Iterator[tuple[SwarmClient, list[str]]]:
    """Two servers of the whole model; the one that is used first lies. With the list that names it."""
    liars: list[str] = []

    def corrupt(live: Live) -> None:
        honest = live.server._to_client

        def to_client(seat: object, message: wire.Message, array: wire.Array | None = None) -> None:
            if isinstance(message, wire.Token | wire.Result):
                if not liars:
                    liars.append(live.described.key)
                if liars == [live.described.key]:
                    message, array = (lie(message), None) if array is None else (message, lie(array))
            honest(seat, message, array)  # type: ignore[arg-type]

        live.server._to_client = to_client  # type: ignore[assignment, method-assign]

    with directory(folder / "state") as started, serving(started.token) as one, serving(started.token) as other:
        corrupt(one)
        corrupt(other)
        with SwarmClient(str(started.token)) as client:
            client.wait_complete(MODEL)
            yield client, liars


@pytest.mark.parametrize(
    "lie",
    [
        lambda token: msgspec.structs.replace(token, finish="length"),
        lambda token: msgspec.structs.replace(token, finish="stop"),
        lambda token: msgspec.structs.replace(token, logprob=float("nan")),
        lambda token: msgspec.structs.replace(token, top=((1, float("inf")),)),
    ],
    ids=["ends early", "stops for nothing", "no number", "infinite"],
)
def test_a_tail_that_answers_nonsense_is_replaced(lie: Lie, tmp_path: Path, swarm_home: Path) -> None:
    with swarm_with_a_liar(tmp_path, lie) as (client, liars), client.session(MODEL, 64) as session:
        assert list(session.stream(PROMPT, 20)) == greedy(PROMPT, 20)
        assert liars and session.route[0].peer != liars[0]
        assert any("it breaks the protocol" in notice for notice in session.notices)


def test_a_session_that_breaks_the_client_ends_alone(
    tmp_path: Path, swarm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = RemoteSession.received

    def broken(session: RemoteSession, peer: str, message: wire.AnyMessage, array: object, now: float) -> object:
        if session.max_length == 63 and isinstance(message, wire.Token):
            raise ZeroDivisionError
        return received(session, peer, message, array, now)  # type: ignore[arg-type]

    monkeypatch.setattr(RemoteSession, "received", broken)
    with swarm_with_a_liar(tmp_path) as (client, _), client.session(MODEL, 64) as fine:
        tokens = fine.stream(PROMPT, 20)
        made = [next(tokens)]
        with client.session(MODEL, 63) as bad, pytest.raises(SessionFailed, match="its log says where"):
            list(bad.stream(PROMPT, 20))
        assert made + list(tokens) == greedy(PROMPT, 20)


def test_a_result_of_another_shape_is_asked_for_again(tmp_path: Path, swarm_home: Path) -> None:
    with swarm_with_a_liar(tmp_path, lambda rows: rows[1:]) as (client, liars), client.session(MODEL, 64) as session:
        rows = session.step(PROMPT)
        assert liars and session.route[0].peer != liars[0]
        assert [int(row.argmax()) for row in rows] == [*map(int, logits(PROMPT).argmax(-1))]
