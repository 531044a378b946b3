"""The cost of failures: a storm of killed and stopped servers, and the grid of failure rates of the Petals paper.

    python -m benchmarks.chaos storm --events 200 --json storm.json --plot docs/storm.png
    python -m benchmarks.chaos grid --json grid.json

Every answer is compared, token by token, with the one that the same swarm gave before anything failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from backends import ModelInfo, Span, registry
from benchmarks.kit.proxy import Proxy
from swarm import ClientSession, SwarmClient, SwarmError
from swarm.cli.programs.up import split_evenly
from swarm.models import resolve
from swarm.system.process import user_errors
from tests.e2e.programs import Program, Swarm

PROMPT_TOKENS = 16
DOWN = 2.0  # s that a server of the grid stays out of reach
BACK = 1.0  # s after which a server that was out of reach counts as one that can replace another
STOPPED = (1.0, 15.0)  # s, shortest and longest stop


def print_progress(text: str) -> None:
    """Print a line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Recovery:
    """The time from a failure to the next token of a stream that ran over the failed server."""

    what: str
    seconds: float


@dataclass
class Stream:
    """One client's stream, again and again the same answer, watched for failures of its servers."""

    number: int
    prompt: list[int]
    wanted: list[int] = field(default_factory=list)
    session: ClientSession | None = None
    epoch: int = 0
    hit: tuple[str, float] | None = None  # what happened to one of its servers, and when
    recoveries: list[Recovery] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def tokens(self, client: SwarmClient, model: str, tokens: int) -> Iterator[int]:
        """One answer, with what its failures cost noted."""
        with client.session(model, len(self.prompt) + tokens) as session:
            self.session, self.hit = session, None
            for token in session.stream(self.prompt, tokens):
                if (hit := self.hit) and session.epoch > self.epoch:
                    self.recoveries.append(Recovery(hit[0], time.monotonic() - hit[1]))
                    self.hit = None
                yield token
            self.session = None

    def repeat(self, client: SwarmClient, model: str, tokens: int, over: threading.Event) -> None:
        """Ask for the same answer again and again, until `over` is set."""
        while not over.is_set():
            try:
                outcome = "same" if [*self.tokens(client, model, tokens)] == self.wanted else "different"
            except SwarmError as error:
                print_progress(f"stream {self.number} was lost: {error}")
                outcome = "lost"
            self.outcomes[outcome] += 1

    def happened(self, what: str, peer: str) -> None:
        """A server failed."""
        session = self.session
        if session is not None and self.hit is None and peer in {hop.peer for hop in session.route}:
            self.epoch = session.epoch
            self.hit = (what, time.monotonic())


class StormServers:
    """The servers of a storm, by name, started again when they were killed."""

    def __init__(self, swarm: Swarm, model: Path, served_as: str, options: Sequence[str]) -> None:
        self._swarm = swarm
        self._command = (str(model), "--model-name", served_as, "--device", "cpu", *options)
        self.programs: dict[str, Program] = {}
        self.stopped: dict[str, float] = {}  # by name: when it goes on

    def start(self, name: str, span: Span, *options: str) -> None:
        """Start a server of `span` under a name."""
        arguments = (*self._command, "--blocks", str(span), "--name", name, *options)
        self.programs[name] = self._swarm.start("swarm-server", *arguments)

    def tend(self, now: float) -> None:
        """Let go on whose time has come, and read what they all say, so that no pipe runs full."""
        for name, until in list(self.stopped.items()):
            if now >= until:
                del self.stopped[name]
                self.signal(name, signal.SIGCONT)
        for program in self.programs.values():
            program.drain()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a server, unless it has ended."""
        process = self.programs[name].process
        if process.pid and process.is_alive():
            os.kill(process.pid, number)


def prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Random prompts, the same ones in each run."""
    generator = random.Random(1)
    return [[generator.randrange(vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


@contextmanager
def started(model: str) -> Iterator[tuple[Swarm, resolve.ResolvedModel, ModelInfo]]:
    """A directory with an empty home, and what is to be served."""
    found = resolve.resolve(model)
    info = registry.find(registry.DEFAULT).describe(found.path)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        os.environ["SWARM_HOME"] = home
        with Swarm(Path(home)) as swarm:
            yield swarm, found, info


@click.group()
def main() -> None:
    """What failures cost."""


model_option = click.option("--model", default="smollm2-135m", show_default=True)
json_option = click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures there.")
spans_option = click.option("--spans", type=click.IntRange(1), default=4, show_default=True)
replicas_option = click.option("--replicas", type=click.IntRange(1), default=2, show_default=True)
seed_option = click.option("--seed", default=1, show_default=True)


@main.command()
@model_option
@spans_option
@replicas_option
@seed_option
@json_option
@click.option("--streams", type=click.IntRange(1), default=8, show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=64, show_default=True, help="Of each answer.")
@click.option("--events", type=click.IntRange(1), default=200, show_default=True)
@click.option("--pause", type=click.FloatRange(0), default=4.0, show_default=True, help="Mean seconds between events.")
@click.option("--patience", type=click.FloatRange(0), default=30.0, show_default=True, help="Of the clients, seconds.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw the recovery times there.")
def storm(
    model: str,
    spans: int,
    replicas: int,
    seed: int,
    json_file: Path | None,
    streams: int,
    tokens: int,
    events: int,
    pause: float,
    patience: float,
    picture: Path | None,
) -> None:
    """Kill and stop servers at random under concurrent streams; killed ones are started again."""
    settings = {"spans": spans, "replicas": replicas, "streams": streams, "tokens": tokens, "pause": pause}
    with user_errors(), ExitStack() as resources:
        swarm, found, info = resources.enter_context(started(model))
        members = StormServers(swarm, found.path, found.name, ("--threads", "1", "--dtype", "float32"))
        places = {f"{span}-{replica}": span for span in split_evenly(info.blocks, spans) for replica in range(replicas)}
        for name, span in places.items():
            members.start(name, span)
        for program in members.programs.values():
            program.wait_line("ready:")
        client = resources.enter_context(SwarmClient(swarm.token, patience=patience))
        running = [Stream(i, prompt) for i, prompt in enumerate(prompts(streams, info.vocab_size))]
        print_progress("what they answer undisturbed")
        for stream in running:
            stream.wanted = [*stream.tokens(client, found.name, tokens)]
        keys = {server.name: server.key for server in client.models()[0].servers}
        with repeated(running, client, found.name, tokens, members):
            happened = inject_failures(members, places, keys, running, events, pause, random.Random(seed))
    figures = {
        "settings": {"model": found.name, **settings, "patience": patience},
        "events": dict(happened),
        "answers": dict(sum((stream.outcomes for stream in running), Counter())),
        "recoveries": [[r.what, r.seconds] for stream in running for r in stream.recoveries],
    }
    report_storm(figures)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if picture:
        plot_storm(figures, picture)


@contextmanager
def repeated(
    streams: Sequence[Stream], client: SwarmClient, model: str, tokens: int, members: StormServers
) -> Iterator[None]:
    """Run the streams again and again while the block runs, and let each finish its last answer."""
    over = threading.Event()
    threads = [threading.Thread(target=stream.repeat, args=(client, model, tokens, over)) for stream in streams]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        while any(thread.is_alive() for thread in threads):
            members.tend(time.monotonic())
            time.sleep(0.1)


def inject_failures(
    members: StormServers,
    places: dict[str, Span],
    keys: dict[str, str],
    streams: Sequence[Stream],
    events: int,
    pause: float,
    chance: random.Random,
) -> Counter[str]:
    """Kill and stop servers at random; the counts of what was done."""
    happened: Counter[str] = Counter()
    ready = dict.fromkeys(places, True)
    due = time.monotonic() + chance.expovariate(1 / pause)
    while sum(happened.values()) < events:
        time.sleep(0.02)
        now = time.monotonic()
        members.tend(now)
        for name, program in members.programs.items():
            ready[name] = ready[name] or any(line.startswith("ready:") for _, line in program.lines)
        if now < due:
            continue
        due = now + chance.expovariate(1 / pause)
        name = chance.choice(list(places))
        if not ready[name] or name in members.stopped:
            continue
        warm = any(
            span == places[name] and other != name and ready[other] and other not in members.stopped
            for other, span in places.items()
        )
        kind = chance.choice(["killed", "stopped"])
        what = f"{kind}, a replica {'ready' if warm else 'missing'}"
        if kind == "killed":
            members.programs[name].kill()
        else:
            members.signal(name, signal.SIGSTOP)
            members.stopped[name] = now + chance.uniform(*STOPPED)
        for stream in streams:
            stream.happened(what, keys[name])
        if kind == "killed":
            ready[name] = False
            members.start(name, places[name])
        happened[what] += 1
        print_progress(f"{sum(happened.values())} of {events}: {name} {what}")
    for name in list(members.stopped):
        members.stopped[name] = 0.0
    return happened


def report_storm(figures: dict[str, Any]) -> None:
    """Print the figures of a storm."""
    answers, settings = figures["answers"], figures["settings"]
    table = Table(
        title=f"{sum(figures['events'].values())} failures, {settings['streams']} streams, {settings['spans']} spans x "
        f"{settings['replicas']}: {answers.get('same', 0)} answers the same, {answers.get('different', 0)} different, "
        f"{answers.get('lost', 0)} lost",
        box=None,
        header_style="dim",
        title_justify="left",
    )
    for title in ("failure", "how many", "streams hit", "back after, median s", "p99 s", "longest s"):
        table.add_column(title, justify="left" if title == "failure" else "right")
    for what, count in sorted(figures["events"].items()):
        seconds = [s for w, s in figures["recoveries"] if w == what]
        row = [f"{f(seconds):.2f}" for f in (statistics.median, lambda s: quantile(s, 0.99), max)] if seconds else "---"
        table.add_row(what, str(count), str(len(seconds)), *row)
    Console(width=120).print(table)


def plot_storm(figures: dict[str, Any], path: Path) -> None:
    """For each kind of failure, the share of streams that were back after so many seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for what in sorted(figures["events"]):
        seconds = sorted(s for w, s in figures["recoveries"] if w == what)
        if seconds:
            axes.step(seconds, [(i + 1) / len(seconds) for i in range(len(seconds))], where="post", label=what)
    axes.set_xscale("log")
    axes.set_xlabel("seconds from the failure to the next token")
    axes.set_ylabel("share of the streams that were hit")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


@main.command()
@model_option
@spans_option
@replicas_option
@seed_option
@json_option
@click.option("--rates", default="0,1e-4,1e-3,1e-2", show_default=True, help="Of failure, per step and server.")
@click.option("--tokens", "lengths", default="128,1024", show_default=True)
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True)
def grid(
    model: str, spans: int, replicas: int, seed: int, json_file: Path | None, rates: str, lengths: str, runs: int
) -> None:
    """Steps per second at several failure rates (Petals, arXiv 2312.08361, table 1).

    A failure breaks every connection of a server and keeps it out of reach for 2 s: to all others a crash. The
    process stays, because starting it again would take the cores of this machine from the servers that are measured.
    As in the paper there is always a server to replace the failed one: a failure that would take the last of a span
    comes when another one is back.
    """
    chance = random.Random(seed)
    with user_errors(), ExitStack() as resources:
        swarm, found, info = resources.enter_context(started(model))
        threads = str(psutil.cpu_count(logical=False) or 1)
        members = StormServers(swarm, found.path, found.name, ("--threads", threads, "--dtype", "float32"))
        proxies: dict[str, dict[str, Proxy]] = {}  # by span, then by the server's name
        for span in split_evenly(info.blocks, spans):
            for replica in range(replicas):
                name = f"{span}-{replica}"
                proxy = resources.enter_context(Proxy())
                proxies.setdefault(str(span), {})[name] = proxy
                members.start(name, span, "--bind", "127.0.0.1:0", "--advertise", f"127.0.0.1:{proxy.port}")
        for span_proxies in proxies.values():
            for name, proxy in span_proxies.items():
                print_progress(members.programs[name].wait_line("ready:"))
                proxy.target = listening_port(members.programs[name])
        client = resources.enter_context(SwarmClient(swarm.token))
        fleet = GridServers({server.key: server.name for server in client.models()[0].servers}, proxies)
        (prompt,) = prompts(1, info.vocab_size)
        rows = []
        for length in map(int, lengths.split(",")):
            wanted: list[int] | None = None
            for rate in map(float, rates.split(",")):
                for _ in range(runs):
                    row = generate(client, found.name, prompt, length, rate, fleet, chance)
                    wanted = wanted or row.pop("ids")
                    row["same"] = row.pop("ids", wanted) == wanted
                    print_progress(str(row))
                    rows.append(row)
                    members.tend(time.monotonic())
    report_grid(rows)
    if json_file:
        json_file.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class GridServers:
    """The servers of one grid cell, each behind a proxy that breaks its connections.

    Attributes:
        names: of the servers, by their keys.
        proxies: by span and name.
    """

    names: dict[str, str]
    proxies: dict[str, dict[str, Proxy]]

    def fail(self, key: str) -> bool:
        """Put a server out of reach unless it is the last one of its span."""
        name = self.names[key]
        others = next(proxies for proxies in self.proxies.values() if name in proxies)
        if not any(proxy.reachable(BACK) for other, proxy in others.items() if other != name):
            return False
        others[name].fail(DOWN)
        return True


def listening_port(program: Program) -> int:
    """The port of the one socket that the server listens on."""
    process = psutil.Process(program.process.pid)
    ports = {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    (port,) = ports
    return port


def generate(
    client: SwarmClient,
    model: str,
    prompt: list[int],
    tokens: int,
    rate: float,
    fleet: GridServers,
    chance: random.Random,
) -> dict[str, Any]:
    """One answer, with failures at this rate after each of its tokens."""
    stream = Stream(0, prompt)
    failures, ids = 0, []
    due: Counter[int] = Counter()  # failures that are to come, by hop
    started = time.monotonic()
    for token in stream.tokens(client, model, tokens):
        ids.append(token)
        for number, hop in enumerate(stream.session.route if stream.session else ()):
            due[number] += chance.random() < rate
            if due[number] and fleet.fail(hop.peer):
                due[number] -= 1
                failures += 1
                stream.happened("failed", hop.peer)
    seconds = time.monotonic() - started
    recoveries = [recovery.seconds for recovery in stream.recoveries]
    return {
        "tokens": tokens,
        "rate": rate,
        "steps_per_second": tokens / seconds,
        "failures": failures,
        "recoveries": recoveries,
        "ids": ids,
    }


def report_grid(rows: list[dict[str, Any]]) -> None:
    """Print the figures of a grid."""
    table = Table(box=None, header_style="dim")
    for title in ("tokens", "failure rate", "steps/s", "to rate 0", "failures", "median s", "p99 s", "tokens the same"):
        table.add_column(title, justify="right")
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        ideal = None
        for rate in dict.fromkeys(row["rate"] for row in rows):
            here = [row for row in rows if (row["tokens"], row["rate"]) == (tokens, rate)]
            speed = statistics.median(row["steps_per_second"] for row in here)
            ideal = ideal or speed
            back = [seconds for row in here for seconds in row["recoveries"]]
            table.add_row(
                str(tokens),
                f"{rate:g}",
                f"{speed:.1f}",
                f"{speed / ideal:.2f}",
                str(sum(row["failures"] for row in here)),
                f"{statistics.median(back):.2f}" if back else "-",
                f"{quantile(back, 0.99):.2f}" if back else "-",
                f"{sum(row['same'] for row in here)} of {len(here)}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
