"""An environment of its own for each client, made when it is needed first and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

TASKS = Path(__file__).with_name("tasks")
INSTALLING = 1200  # s


@dataclass(frozen=True)
class Client:
    """
    Attributes:
        task: the script in `tasks/` that uses it.
        packages: of the Python package index, or of npm where the script is JavaScript.
    """

    name: str
    task: str
    packages: tuple[str, ...]

    @property
    def node(self) -> bool:
        return self.task.endswith(".mjs")


# The packages for Node are those that still run on Node 20.
CLIENTS = (
    Client("openai (Python)", "openai_python.py", ("openai==3.54.0",)),
    Client("anthropic (Python)", "anthropic_python.py", ("anthropic==2.12.0",)),
    Client("litellm", "litellm_task.py", ("litellm==1.101.3",)),
    Client("langchain-openai", "langchain_task.py", ("langchain-openai==1.7.3",)),
    Client("openai (Node)", "openai_node.mjs", ("openai@6.49.0",)),
    Client("Vercel AI SDK", "vercel_ai.mjs", ("ai@6.0.326", "@ai-sdk/openai-compatible@2.0.87", "zod@4.6.7")),
    Client("lm-eval", "lm_eval_task.py", ("lm_eval[api]==0.4.13",)),
    Client("aider", "aider_task.py", ("aider-chat==0.86.2",)),
)


def home() -> Path:
    """Where the environments are kept: `SWARM_CLIENTS_HOME`, or the user's cache."""
    return Path(os.environ.get("SWARM_CLIENTS_HOME") or platformdirs.user_cache_path("layerswarm-clients"))


def prepared(client: Client) -> list[str]:
    """The command that runs the client's task.

    Raises:
        RuntimeError: the environment could not be made, and why.
    """
    wanted = hashlib.sha256(repr((client.packages, sys.version_info[:2])).encode()).hexdigest()[:12]
    folder = home() / f"{Path(client.task).stem}-{wanted}"
    finished = folder / "finished"
    if not finished.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _install(client, folder)
        finished.touch()
    if client.node:
        # Node looks for packages beside the script.
        return ["node", str(shutil.copy(TASKS / client.task, folder))]
    return [str(_python(folder)), str(TASKS / client.task)]


def _install(client: Client, folder: Path) -> None:
    if client.node:
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError("there is no npm")
        _run([npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *client.packages])
        return
    _run([sys.executable, "-m", "venv", str(folder / "venv")])
    _run([str(_python(folder)), "-m", "pip", "install", "--quiet", "--prefer-binary", *client.packages])


def _python(folder: Path) -> Path:
    return folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALLING)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-800:])
