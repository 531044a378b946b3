"""A machine that goes to sleep and wakes up: every program on it stands still, and the clock goes on without them."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from routing.membership.directory_link import TTL
from swarm import SwarmClient
from tests.e2e.programs import LIMIT, Program, Swarm

ASLEEP = TTL + 4.0  # s; every lease and heartbeat runs out meanwhile


def said(program: Program) -> str:
    return "\n".join(line for where, line in program.lines if where == "out")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process by a signal")
def test_after_a_sleep_the_servers_are_there_again_and_the_answer_goes_on(smollm2: Path, tmp_path: Path) -> None:
    with Swarm(tmp_path / "home") as swarm:
        servers = swarm.serve(smollm2, "0:15", "15:30", options=["--model-name", "real"])
        ask = ("swarm-client", "real", "Once upon a time", "--max-new-tokens", "200")
        undisturbed = swarm.start(*ask)
        assert undisturbed.wait_exit() == 0, undisturbed.lines
        with SwarmClient(swarm.token) as awake:
            awake._directory.wait_for(lambda view: not any(each.load.sessions for each in view.servers.values()), LIMIT)
            sleeper = swarm.start(*ask)
            awake._directory.wait_for(lambda view: any(each.load.sessions for each in view.servers.values()), LIMIT)
            everybody = [each.process.pid or 0 for each in (swarm.directory, *servers, sleeper)]
            for pid in everybody:
                os.kill(pid, signal.SIGSTOP)
            assert sleeper.process.is_alive()  # or the answer was complete before
            threading.Event().wait(ASLEEP)
            for pid in everybody:
                os.kill(pid, signal.SIGCONT)
            assert sleeper.wait_exit() == 0, sleeper.lines
            assert said(sleeper) == said(undisturbed)
            awake.wait_complete("real", LIMIT)  # the leases ran out; the servers have announced themselves again
