"""Starts a swarm of two servers with SmolLM2 and a gateway, and lets each client do its task through it.

    python -m tests.clients.run [NAME...]     NAME: a part of a client's name; none: all

Environments are made on demand, which takes minutes the first time, and kept (`tests.clients.environments`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from swarm.models.resolve import resolve
from tests.clients.environments import CLIENTS, Client, prepared
from tests.e2e.programs import Swarm

MODEL = "smollm2-135m"
WORKING = 900  # s for one task
# What a user's own settings would say otherwise.
FOREIGN = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ORGANIZATION", "ANTHROPIC_AUTH_TOKEN", "PYTHONPATH")


def worked(client: Client, url: str, folder: Path) -> tuple[bool, str]:
    """Whether the client's task succeeded, and what it said."""
    try:
        command = prepared(client)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return False, f"no environment: {error}"
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN} | {
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_BASE": f"{url}/v1",
        "OPENAI_API_KEY": "none",
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "none",
        "MODEL": MODEL,
        "HF_HUB_OFFLINE": "1",
    }
    try:
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=WORKING)
    except subprocess.TimeoutExpired:
        return False, f"not done within {WORKING} s"
    output = f"{done.stdout}\n{done.stderr}" if done.returncode else done.stdout
    return done.returncode == 0, output.strip()


def main(names: list[str]) -> int:
    chosen = [client for client in CLIENTS if not names or any(name.lower() in client.name.lower() for name in names)]
    if not chosen:
        print(f"no such client; there are: {', '.join(client.name for client in CLIENTS)}", file=sys.stderr)
        return 2
    model = resolve(MODEL).path
    rows: list[tuple[str, str, float, str]] = []
    with tempfile.TemporaryDirectory() as scratch, Swarm(Path(scratch) / "home") as swarm:
        options = ["--dtype", "float32", "--model-name", MODEL, "--kv-tokens", "16384"]
        swarm.serve(model, "0:15", "15:30", options=options)
        url = swarm.gateway()
        for client in chosen:
            folder = Path(tempfile.mkdtemp(dir=scratch))
            began = time.monotonic()
            fine, output = worked(client, url, folder)
            lines = output.splitlines() or [""]
            rows.append((client.name, "works" if fine else "FAILS", time.monotonic() - began, lines[-1][:100]))
            print(f"--- {client.name}: {rows[-1][1]}\n{output}\n", flush=True)
            for program in swarm.servers:
                program.drain()
    print(f"{'client':20} {'':6} {'s':>6}  last line")
    for name, result, seconds, line in rows:
        print(f"{name:20} {result:6} {seconds:6.1f}  {line}")
    return 0 if all(result == "works" for _, result, _, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
