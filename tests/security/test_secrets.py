"""Secrets are nowhere where another user of the machine, or a reader of logs, would find them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import psutil
import pytest

from benchmarks.kit.swarm import Program
from routing.security import JoinToken
from tests.families import make_model


@pytest.mark.slow
def test_no_program_shows_the_token_or_a_key_to_others(tmp_path: Path, swarm_home: Path) -> None:
    model = make_model("llama", tmp_path / "llama")
    options = ("--servers", "2", "--port", "0", "--no-browser", "--verbose")
    program = Program(tmp_path, "up", "swarm", "up", str(model), *options)
    try:
        token = program.wait_for("join")
        program.wait_for("ready")
        secrets = {token, JoinToken.parse(token).secret.decode()}
        keys = list(swarm_home.rglob("*.key"))
        secrets |= {path.read_text().strip() for path in keys}
        assert len(secrets) >= 6  # the token's two, the directory's, two servers', the gateway's
        processes = [program.stats, *program.stats.children(recursive=True)]
        assert len(processes) >= 5
        shown = [" ".join(each.cmdline()) for each in processes if each.status() != psutil.STATUS_ZOMBIE]
    finally:
        program.stop()
    logs = [program.log, *(path.read_text(errors="replace") for path in swarm_home.rglob("*.log"))]
    for secret in secrets:
        assert not any(secret in line for line in shown), shown
        assert not any(secret in log for log in logs)
    if os.name == "posix":
        for path in keys:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
