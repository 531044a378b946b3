"""What is fuzzed: real programs in processes of their own, and good peers that must notice nothing.

`SWARM_HOME` must be set to an empty folder. Another kind of target is one more function that gives a `Target`, and a
talk of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from benchmarks.kit.swarm import Program
from routing import wire
from routing.client import DirectoryClient
from routing.relay.rules import is_relayed
from routing.security import Identity, JoinToken
from routing.view import View
from swarm import SwarmClient
from tests.fuzz.hostile import enrolled
from tests.fuzz.mutation import Mutator
from tests.fuzz.talk import DirectoryTalk, RawTalk, RouterTalk, ServerTalk, Talk
from tests.fuzz.toy_backend import MODEL, make_folder
from tests.swarm.toy import greedy

PROMPT = [5, 17, 3, 42, 8]
NEW = 12


@dataclass
class Target:
    """
    Attributes:
        key, address: where hostile peers connect to.
        hostile: the identities that do, each with what it has to say.
        check: a good peer is served as it should be; AssertionError if not.
        raw: what is said on a TCP connection, without ZeroMQ, to a target that listens to that.
    """

    name: str
    program: Program
    key: str
    address: str
    hostile: list[tuple[Identity, Talk]]
    check: Callable[[], None]
    raw: Callable[[Mutator], bytes] | None = None

    def resident(self) -> int:
        """Bytes. Raises: AssertionError: it has crashed."""
        assert self.program.stats.is_running(), f"{self.name} has ended: {self.program.log[-2000:]}"
        try:
            return int(self.program.stats.memory_info().rss)
        except psutil.NoSuchProcess:
            raise AssertionError(f"{self.name} has ended: {self.program.log[-2000:]}") from None

    def logged(self) -> int:
        """Bytes."""
        return len(self.program.log)


@contextmanager
def started_directory(folder: Path) -> Iterator[tuple[Program, JoinToken]]:
    state = str(folder / "directory")
    command = ("directory", "--bind", "127.0.0.1:0", "--state-dir", state)
    program = Program(folder, "directory", "tests.fuzz.program", *command, FUZZ_UNLIMITED="1")
    try:
        yield program, JoinToken.parse(program.wait_for("join"))
    finally:
        program.stop()


@contextmanager
def started_server(
    folder: Path,
    token: JoinToken,
    span: str = "0:6",
    kv_tokens: int = 4000,
    options: Sequence[str] = (),
    **environment: str,
) -> Iterator[Program]:
    """A server of the toy model."""
    command = ("server", str(make_folder(folder)), "--backend", "toy", "--blocks", span, "--kv-tokens", str(kv_tokens))
    command = (*command, *options)
    name = f"server-{span.replace(':', '-')}"
    program = Program(folder, name, "tests.fuzz.program", *command, SWARM_JOIN=str(token), **environment)
    try:
        program.wait_for("ready")
        yield program
    finally:
        program.stop()


@contextmanager
def server(folder: Path, seed: int, hostile: int = 2, unlimited: bool = True) -> Iterator[Target]:
    """`swarm-server` of the toy model; the good peer generates, and gets the tokens of the whole model.

    Args:
        unlimited: everything that is said is read; otherwise most of it is over what one peer may say.
    """
    environment = {"FUZZ_UNLIMITED": "1"} if unlimited else {}
    with (
        started_directory(folder) as (_, token),
        started_server(folder, token, **environment) as program,
        SwarmClient(str(token)) as client,
    ):
        client.wait_complete(MODEL)
        (described,) = client.models()[0].servers
        wanted = greedy(PROMPT, NEW)

        def check() -> None:
            with client.session(MODEL, 64) as session:
                assert list(session.stream(PROMPT, NEW)) == wanted
                logits = session.step([1, 2, 3])
                assert logits.shape == (3, 61)

        identities = _enrol(token, hostile)
        talks = [(each, ServerTalk(described.key, each.public, seed + i)) for i, each in enumerate(identities)]
        yield Target("server", program, described.key, described.addresses[0], talks, check)


@contextmanager
def directory(folder: Path, seed: int, hostile: int = 2) -> Iterator[Target]:
    """`swarm-directory`; the good peer is a newcomer that sees the honest server as it has announced itself."""
    with started_directory(folder) as (program, token):
        honest = Identity.create()
        described = wire.ServerInfo(
            key=honest.public,
            name="honest",
            addresses=("127.0.0.1:1",),
            model=MODEL,
            blocks=6,
            start=0,
            end=6,
            hidden_size=8,
            context_length=0,
            backend="toy",
            device="cpu",
            dtype="float32",
            state="ready",
        )
        newcomer = Identity.create()
        with DirectoryClient(token, honest, "honest") as own:
            own.announce(described)

            def check() -> None:
                with DirectoryClient(token, newcomer, "newcomer", timeout=30) as client:
                    client.wait_for(lambda view: honest.public in view.servers, 30)
                    seen = client.view.servers[honest.public]
                    assert seen == msgspec.structs.replace(described, revision=seen.revision)
                    assert client.admits(honest.public)

            identities = _enrol(token, hostile)
            talks: list[tuple[Identity, Talk]] = [
                (each, DirectoryTalk(each.public, seed + i)) for i, each in enumerate(identities)
            ]
            # Under the token's own key nothing but enrolment is answered.
            talks.append((Identity.from_secret(token.secret), DirectoryTalk(identities[0].public, seed + hostile)))
            yield Target("directory", program, token.directory, token.addresses[0], talks, check)


@contextmanager
def router(folder: Path, seed: int, hostile: int = 2) -> Iterator[Target]:
    """`swarm-router`; the good peer generates through it, on a server that cannot be reached in another way."""
    with started_directory(folder) as (_, token):
        command = ("router", "--bind", "127.0.0.1:0")
        program = Program(folder, "router", "tests.fuzz.program", *command, SWARM_JOIN=str(token), FUZZ_UNLIMITED="1")
        try:
            program.wait_for("ready")
            with started_server(folder, token, options=("--relayed",)), SwarmClient(str(token)) as client:
                wanted = greedy(PROMPT, NEW)
                client._directory.wait_for(lambda view: bool(view.routers) and _all_relayed(view), 60)
                (described,) = client._directory.view.routers.values()

                def check() -> None:
                    with SwarmClient(str(token)) as newcomer, newcomer.session(MODEL, 64) as session:
                        assert list(session.stream(PROMPT, NEW)) == wanted

                members = [(each, RouterTalk(seed + i)) for i, each in enumerate(_enrol(token, hostile))]
                server = next(iter(client._directory.view.servers))
                yield Target(
                    "router", program, described.key, described.addresses[0], members, check, RawTalk(server, seed)
                )
        finally:
            program.stop()


def _all_relayed(view: View) -> bool:
    return bool(view.servers) and all(is_relayed(each.addresses[-1]) for each in view.servers.values())


def _enrol(token: JoinToken, count: int) -> list[Identity]:
    return [enrolled(token) for _ in range(count)]


TARGETS = {
    "directory": directory,
    "router": router,
    "server": server,
}
