"""`swarm up`: a whole swarm on this machine, as the real programs in processes of their own."""

from __future__ import annotations

import itertools
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from backends import Span, registry
from swarm.cli.options import backend_option, quantize_option, verbose_option, verify_option
from swarm.cli.programs.child import ChildProgram
from swarm.errors import SwarmError
from swarm.models import resolve
from swarm.models.catalogue import DEFAULT_MODEL
from swarm.system import home
from swarm.system.jobs import JobObject
from swarm.system.join import save_join_token
from swarm.system.process import StopSignal, log_to_stderr, print_contract_line, stop_signals, user_errors

SHARED_BIND = "0.0.0.0:7700"  # where the directory listens when other machines may join, as swarm-directory does
MAX_RESTARTS = 3  # of one server, until it is left alone


@click.command()
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--servers", type=click.IntRange(1), default=2, show_default=True, help="How many share the blocks.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Of the gateway.")
@click.option("--no-browser", is_flag=True, help="Do not open the chat page.")
@click.option("--share", is_flag=True, help="Let other machines of the network join: listen there, on port 7700.")
@click.option("--dtype", default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True)
@backend_option
@quantize_option
@verify_option
@verbose_option
def up(
    model: str,
    servers: int,
    port: int,
    no_browser: bool,
    share: bool,
    dtype: str,
    device: str,
    backend: str,
    quantize: str | None,
    verify: int,
    verbose: bool,
) -> None:
    """Start directory, servers and gateway on this machine."""
    log_to_stderr(verbose)
    options = ("--dtype", dtype, "--device", device, *(("--quantize", quantize) if quantize else ()))
    settings = UpSettings(model, servers, port, not no_browser, share, backend, options, verify)
    with user_errors(), stop_signals() as stop:
        run_local_swarm(settings, stop)


@dataclass(frozen=True, slots=True)
class UpSettings:
    """The options of `swarm up`.

    Attributes:
        servers: how many share the blocks of the model.
        port: of the gateway; 0: any free one.
        browser: whether to open the chat page.
        share: whether directory and servers listen on the network, so that other machines can join. The gateway does
            not.
        server_options: further arguments of each `swarm server`.
        verify: how many parts of each answer the gateway has computed anew.
    """

    model: str
    servers: int
    port: int
    browser: bool
    share: bool
    backend: str
    server_options: Sequence[str] = ()
    verify: int = 0


def run_local_swarm(settings: UpSettings, stop: StopSignal) -> None:
    """Start directory, servers and gateway; print `join:` and `ready:`; watch over them until `stop` is set.

    Raises:
        SwarmError, BackendError: the model or the backend is not to be had, or a program does not start or ends.
    """
    if settings.backend != registry.AUTO:
        registry.find(settings.backend)  # before a model is fetched for it
    resolved = resolve.resolve(settings.model)
    _say(f"model: {resolved.name}, from {resolved.source}")
    spans = split_evenly(registry.describe(settings.backend, resolved.path).blocks, settings.servers)
    with ExitStack() as resources:
        programs = _Programs(settings, resources)
        directory = programs.start_directory()
        token = directory.wait_ready(stop).removeprefix("join:").strip()
        save_join_token(token)
        gateway = programs.start_gateway(token)
        servers = programs.start_servers(token, resolved.path, resolved.name, spans)
        url = gateway.wait_ready(stop).split()[-1]
        for child in servers:
            child.wait_ready(stop)
        stop.abrupt = False
        print_contract_line(f"join: {token}")
        print_contract_line(f"ready: {url}")
        _say(_next_steps(url, resolved.name))
        if settings.browser:
            webbrowser.open(url)
        _watch(directory, gateway, servers, stop)
        _say("stopping")
        for child in (gateway, *servers):
            child.ask_to_stop()  # all at once; the stack then waits for each


def split_evenly(blocks: int, servers: int) -> list[Span]:
    """Spans of nearly the same length that cover all blocks.

    Raises:
        SwarmError: more servers than blocks.
    """
    if not 1 <= servers <= blocks:
        raise SwarmError(f"--servers {servers}: a model of {blocks} blocks takes 1 to {blocks} servers", 2)
    bounds = [round(blocks * i / servers) for i in range(servers + 1)]
    return [Span(start, end) for start, end in itertools.pairwise(bounds)]


class _Programs:
    """The programs of one local swarm; `resources` ends them, the last one first."""

    def __init__(self, settings: UpSettings, resources: ExitStack) -> None:
        self._settings = settings
        self._resources = resources
        self._job = JobObject()
        self._bind = SHARED_BIND if settings.share else "127.0.0.1:0"

    def start_directory(self) -> ChildProgram:
        state = str(home.folder("up"))
        return self._start("directory", "swarm", "directory", "--bind", self._bind, "--state-dir", state)

    def start_gateway(self, token: str) -> ChildProgram:
        options = ("--host", "127.0.0.1", "--port", str(self._settings.port), "--verify", str(self._settings.verify))
        return self._start("gateway", "openai_api.cli", *options, join=token)

    def start_servers(self, token: str, model: Path, name: str, spans: Sequence[Span]) -> list[ChildProgram]:
        host = self._bind.partition(":")[0]
        return [
            self._start(
                f"server-{number}",
                *("swarm", "server", str(model), "--model-name", name, "--blocks", str(span)),
                *("--bind", f"{host}:0", "--name", f"up-{number}", "--drain", "2"),
                *("--backend", self._settings.backend, *self._settings.server_options),
                join=token,
            )
            for number, span in enumerate(spans, 1)
        ]

    def _start(self, name: str, module: str, *arguments: str, join: str = "") -> ChildProgram:
        child = ChildProgram(name, module, *arguments, job=self._job, join=join)
        self._resources.callback(child.stop)
        return child


def _watch(directory: ChildProgram, gateway: ChildProgram, servers: list[ChildProgram], stop: StopSignal) -> None:
    """Start servers again that end, until `stop` is set. Raises: SwarmError: directory or gateway ended."""
    while not stop.wait(0.5):
        for child in (directory, gateway):
            if child.process.poll() is not None:
                raise SwarmError(f"{child.name} stopped (exit code {child.process.returncode}), so the swarm ends")
        for child in list(servers):
            if child.process.poll() is None:
                continue
            code = child.process.returncode
            if child.restarts >= MAX_RESTARTS:
                _say(
                    f"{child.name} stopped again (exit code {code}) after the limit of {MAX_RESTARTS} restarts and is "
                    "left alone: see its lines above, then start 'swarm up' again"
                )
                servers.remove(child)
                continue
            child.restarts += 1
            _say(f"{child.name} stopped (exit code {code}); starting it again")
            child.start()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _next_steps(url: str, model: str) -> str:
    return (
        f"Open {url} in a browser, or ask from another terminal:\n"
        f'  swarm chat\n  swarm run {model} "What is the capital of France?"\n  swarm status\nCtrl-C stops everything.'
    )
