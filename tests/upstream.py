"""Upstream Petals as it is installed in an environment of its own: for tests that run in another one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from routing.client import DirectoryClient
from routing.security import Identity, JoinToken
from routing.view import View
from tests.windows.programs import Program

ROOT = Path(__file__).parents[1]
LIMIT = 300.0  # s; only a test that fails waits so long
PROMPT = [1, 17, 300, 42, 5, 9, 77, 8]
NEW = 24

# As upstream's own examples write it: nothing in it knows of this project.
CLIENT = """
import json, sys
import torch
from petals import AutoDistributedModelForCausalLM

model = AutoDistributedModelForCausalLM.from_pretrained(sys.argv[1], dht_prefix="tiny", torch_dtype=torch.float32)
model.generation_config.eos_token_id = None
prompt = torch.tensor([json.loads(sys.argv[2])])
with torch.inference_mode():
    tokens = model.generate(prompt, max_new_tokens=int(sys.argv[3]), do_sample=False)
print("tokens", json.dumps(tokens[0, prompt.shape[1]:].tolist()))
hidden = model.transformer.word_embeddings(prompt).detach().requires_grad_()
blocks = model.transformer.h(hidden)
blocks.square().sum().backward()
print("forward", json.dumps(blocks[0].tolist()))
print("backward", json.dumps(hidden.grad[0].tolist()))
"""


def petals_python() -> str:
    """Its Python; skips the test where there is none. `SWARM_PETALS_PYTHON` names one elsewhere."""
    scripts = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    found = os.environ.get("SWARM_PETALS_PYTHON") or str(ROOT.joinpath(".venv-petals", *scripts))
    if not Path(found).exists():
        pytest.skip("upstream Petals is not installed: python bootstrap.py petals")
    return found


@contextmanager
def upstream_servers(python: Sequence[str], model: Path, token: JoinToken, folder: Path) -> Iterator[None]:
    """`python -m petals.cli.run_server`, patched, for the blocks 0:3 and 3:6, until both are ready."""
    options = ["--dht_prefix", "tiny", "--torch_dtype", "float32", "--throughput", "1.0", "--num_handlers", "2"]
    options += ["--device", "cpu", "--quant_type", "none", "--attn_cache_tokens", "1024", "--initial_peers", str(token)]
    with ExitStack() as running:
        watcher = running.enter_context(DirectoryClient(token, Identity.create(), "watcher"))
        servers = []
        for blocks in ("0:3", "3:6"):
            here = folder / f"from-{blocks[0]}"
            here.mkdir()
            place = ["--block_indices", blocks, "--cache_dir", str(here), "--public_name", f"blocks {blocks}"]
            program = Program("patches", "run_server", str(model), *options, *place, python=python)
            servers.append(running.enter_context(program))
            running.callback(program.process.terminate)  # it does not end with its standard input

        def both_ready(view: View) -> bool:
            return sum(server.state == "ready" for server in view.serving("tiny", "petals")) == 2

        try:
            watcher.wait_for(both_ready, LIMIT)
        except TimeoutError:
            said = "\n".join(line for server in servers for line in server.errors[-20:])
            pytest.fail(f"the servers did not get ready:\n{said}")
        yield


def run_client(python: Sequence[str], model: Path, token: JoinToken, folder: Path) -> dict[str, Any]:
    """What `CLIENT` prints, by the first word of each line."""
    script = folder / "client.py"
    script.write_text(CLIENT)
    command = [*python, "-m", "patches", str(script), str(model), json.dumps(PROMPT), str(NEW)]
    environment = {**os.environ, "SWARM_JOIN": str(token), "PETALS_MAX_RETRIES": "5"}
    reading: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": LIMIT}
    done = subprocess.run(command, cwd=ROOT, env=environment, **reading)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (line.partition(" ") for line in done.stdout.splitlines())
    return {name: json.loads(value) for name, _, value in lines if name in ("tokens", "forward", "backward")}
