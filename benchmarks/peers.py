"""Our swarm beside its peers, on the same weights, with the same number of machines and threads, in one run.

    python -m benchmarks.peers MODEL --quantize q4_0 --threads 1 --json peers.json --plot peers.png

* llama.cpp: the whole model in one process, which is what no network could reach.
* llama.cpp's RPC: half of the blocks and the head on one RPC server, the rest in the client; and, as in our swarm, all
  blocks on two servers, with a client that computes none. That each of them computes is seen by its processor time;
  with less than a tenth of all, the run fails.
* upstream Petals, where `SWARM_PETALS_PYTHON` names the Python of its environment (`python bootstrap.py petals`): its
  own server and client code in float32, which is all that it does on CPUs, over this project's connections.

Each round runs all of them once, in an order that rotates, and ratios are made within a round.
"""

from __future__ import annotations

import json
import os
import random
import socket
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from backends import Span
from backends.llamacpp import cut, precision
from backends.llamacpp import resolve as llamacpp_models
from backends.llamacpp.library import library
from benchmarks.kit.petals_client import CLIENT
from benchmarks.kit.swarm import BenchmarkSwarm, Program, machine_facts
from benchmarks.kit.whole_model import TimedGeneration
from benchmarks.llama import has_rpc
from benchmarks.ring import over_swarm, print_progress
from routing.client import DirectoryClient
from routing.security import Identity, JoinToken
from swarm.cli.programs.up import split_evenly
from swarm.models import resolve
from swarm.system.process import user_errors

SHORT = 8  # tokens of the prompt
PETALS = "SWARM_PETALS_PYTHON"
RPC = "llama.cpp RPC"
LEAST_SHARE = 0.1  # of the processor time that a server must have used


@dataclass
class Peer:
    """One side of the comparison. `rates` are tokens per second of decoding, one a round.

    The last of the `programs`, `nodes` of them, share the model.
    """

    name: str
    bits: str
    nodes: int
    generate: Callable[[list[int], int], TimedGeneration]
    programs: Sequence[Program]
    rates: list[float] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)  # seconds of each program, one list a round
    tokens: list[int] = field(default_factory=list)

    def measure(self, ids: list[int], tokens: int) -> None:
        """Run once and add what was measured."""
        before = [program.cpu_seconds() for program in self.programs]
        result = self.generate(ids, tokens)
        self.cpu.append([p.cpu_seconds() - start for p, start in zip(self.programs, before, strict=True)])
        self.rates.append(result.rate)
        self.tokens = result.tokens


@dataclass(frozen=True)
class PeerSettings:
    """The options of one comparison."""

    model: str
    quantize: str
    threads: int
    tokens: int
    runs: int


def asking(program: Program) -> Callable[[list[int], int], TimedGeneration]:
    """Generation by a program that answers lines of JSON."""

    def generate(ids: list[int], tokens: int) -> TimedGeneration:
        answer = json.loads(program.ask(json.dumps({"ids": ids, "tokens": tokens})))
        return TimedGeneration(answer["tokens"], answer["times"])

    return generate


def of_llama_cpp(resources: ExitStack, settings: PeerSettings, folder: Path, file: Path, blocks: int) -> Iterator[Peer]:
    """llama.cpp in one process, then with one and two of its RPC servers."""

    def start(name: str, *arguments: str) -> Program:
        program = Program(folder, name, "benchmarks.llama", *arguments, "--threads", str(settings.threads))
        resources.callback(program.stop)
        program.wait_for("ready")
        return program

    whole = start("whole", "generate", str(file))
    yield Peer("llama.cpp, one process", settings.quantize, 1, asking(whole), [whole])
    if not has_rpc(library()):
        print_progress("llama.cpp's RPC is left out: this build of llama.cpp has none")
        return
    for title, count, remote in ((RPC, 1, blocks // 2), (f"{RPC}, two servers", 2, blocks)):
        servers, options = [], ["--remote", str(remote)]
        for number in range(count):
            with socket.create_server(("127.0.0.1", 0)) as free:
                endpoint = f"127.0.0.1:{free.getsockname()[1]}"
            servers.append(start(f"rpc-{count}-{number}", "serve", endpoint))
            options += ["--rpc", endpoint]
        client = start(f"rpc-{count}-client", "generate", str(file), *options)
        yield Peer(title, settings.quantize, 2, asking(client), [client, *servers])


def of_swarm(swarm: BenchmarkSwarm, settings: PeerSettings, model: Path, blocks: int, petals: bool) -> Iterator[Peer]:
    """Our two servers, by each backend."""
    alike = ("--threads", str(settings.threads), "--device", "cpu", "--kv-tokens", "1024")
    quantised = ("--backend", "llama_cpp", "--quantize", settings.quantize)
    kinds = [
        ("ours, llama_cpp", settings.quantize, quantised),
        ("ours, llama_cpp, --awake 0", settings.quantize, (*quantised, "--awake", "0")),
    ]
    if petals:
        kinds.append(("ours, llama_cpp", "float32", ("--backend", "llama_cpp", "--dtype", "float32")))
        kinds.append(("ours, transformers", "float32", ("--dtype", "float32")))
    for number, (title, bits, options) in enumerate(kinds):
        print_progress(f"starting: {title} {bits}")
        name = f"ring-{number}"
        servers = swarm.add(name, model, split_evenly(blocks, 2), *options, *alike)
        yield Peer(title, bits, 2, over_swarm(swarm, name), servers)


def of_petals(
    resources: ExitStack,
    swarm: BenchmarkSwarm,
    settings: PeerSettings,
    folder: Path,
    model: Path,
    blocks: int,
    python: str,
) -> Peer:
    """Upstream's servers and client; `python -m patches` starts them over our directory."""
    print_progress("starting: upstream Petals")
    token = JoinToken.parse(swarm.join)
    options = ["--dht_prefix", "peers", "--torch_dtype", "float32", "--throughput", "1.0", "--num_handlers", "2"]
    options += ["--device", "cpu", "--quant_type", "none", "--attn_cache_tokens", "1024", "--initial_peers", swarm.join]
    threads = {"OMP_NUM_THREADS": str(settings.threads), "MKL_NUM_THREADS": str(settings.threads)}
    servers = []
    for span in split_evenly(blocks, 2):
        here = folder / f"petals-{span.start}"
        here.mkdir()
        place = ["--block_indices", str(span), "--cache_dir", str(here), "--public_name", f"blocks {span.start}"]
        name = f"petals-{span.start}"
        command = ["run_server", str(model), *options, *place]
        servers.append(Program(folder, name, "patches", *command, python=python, **threads))
        resources.callback(servers[-1].end)
    with DirectoryClient(token, Identity.create(), "watcher") as watcher:
        watcher.wait_for(lambda view: sum(s.state == "ready" for s in view.serving("peers", "petals")) == 2, 300.0)
    script = folder / "client.py"
    script.write_text(CLIENT, encoding="utf-8")
    arguments = (str(script), str(model), str(settings.threads))
    client = Program(folder, "petals-client", "patches", *arguments, python=python, SWARM_JOIN=swarm.join, **threads)
    resources.callback(client.end)
    client.wait_for("ready")
    return Peer("upstream Petals", "float32", 2, asking(client), [*servers, client])


def compare(settings: PeerSettings, model: Path) -> list[Peer]:
    """Start our swarm and its peers, measure them, end them."""
    read = llamacpp_models.read(model)
    python = os.environ.get(PETALS, "")
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        kind = precision.wanted(read, "auto", settings.quantize)
        cores = psutil.cpu_count() or 1
        print_progress(f"quantising to {settings.quantize}")
        made = cut.cut(read, Span(0, read.blocks), kind, folder / "whole", library(), cores, lambda done, total: None)
        swarm = resources.enter_context(BenchmarkSwarm(folder))
        peers = list(of_swarm(swarm, settings, model, read.blocks, bool(python)))
        peers += of_llama_cpp(resources, settings, folder, made.file, read.blocks)
        if python:
            peers.append(of_petals(resources, swarm, settings, folder, model, read.blocks, python))
        else:
            print_progress(f"upstream Petals is left out: {PETALS} names no Python that has it")
        generator = random.Random(1)
        ids = [generator.randrange(5, read.vocab_size) for _ in range(SHORT)]
        for peer in peers:
            print_progress(f"warming up: {peer.name} {peer.bits}")
            peer.generate(ids, 4)
        for number in range(settings.runs):
            print_progress(f"round {number + 1} of {settings.runs}")
            first = number % len(peers)
            for peer in peers[first:] + peers[:first]:
                peer.measure(ids, settings.tokens)
                print_progress(f"  {peer.name} {peer.bits}: {peer.rates[-1]:.1f} tokens/s")
    for peer in peers:
        if peer.name.startswith(RPC):
            shares = [sum(seconds) for seconds in zip(*peer.cpu, strict=True)][-peer.nodes :]
            if sum(shares) > 1.0 and min(shares) < LEAST_SHARE * sum(shares):  # less is too little to tell
                raise click.ClickException(f"{peer.name}: one of its processes computed next to nothing: {shares}")
    return peers


def figures(peers: Sequence[Peer]) -> list[dict[str, Any]]:
    """What is published. The first peer is ours at the wanted bits; `ours` is its speed divided by the peer's."""
    ours = peers[0]
    return [
        {
            "name": peer.name,
            "bits": peer.bits,
            "nodes": peer.nodes,
            "rate": statistics.median(peer.rates),
            "rates": peer.rates,
            "ours": statistics.median(a / b for a, b in zip(ours.rates, peer.rates, strict=True)),
            "cpu_per_token": statistics.median(map(sum, peer.cpu)) / max(len(peer.tokens), 1),
            "cpu": peer.cpu,
            "same_tokens": peer.tokens == ours.tokens,
        }
        for peer in peers
    ]


def table(found: dict[str, Any]) -> Table:
    """The figures for people."""
    settings = found["settings"]
    title = (
        f"{settings['model']}, {settings['threads']} thread(s) a process, {settings['tokens']} tokens, "
        f"median of {settings['runs']} round(s)"
    )
    drawn = Table(title=title, box=None, header_style="dim", title_justify="left")
    drawn.add_column("", no_wrap=True)
    for name in ("weights", "processes", "tokens/s", "ours is so many times as fast", "CPU ms/token", "our tokens"):
        drawn.add_column(name, justify="right")
    for peer in found["peers"]:
        drawn.add_row(
            peer["name"],
            peer["bits"],
            str(peer["nodes"]),
            f"{peer['rate']:.1f}",
            f"{peer['ours']:.2f}",
            f"{peer['cpu_per_token'] * 1e3:.1f}",
            "yes" if peer["same_tokens"] else "no",
        )
    return drawn


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the figures into a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peers = found["peers"]
    picture, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    labels = [f"{peer['name']}\n{peer['bits']}, {peer['nodes']} process(es)" for peer in peers]
    colours = ["#2f6fb0" if peer["name"].startswith("ours") else "#8a8f98" for peer in peers]
    bars = axes.barh(labels, [peer["rate"] for peer in peers], color=colours)
    axes.bar_label(bars, [f"{peer['rate']:.1f}" for peer in peers], padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s, decoding")
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{found['settings']['model']}, {found['settings']['threads']} thread(s) a process", fontsize=10)
    picture.savefig(path, dpi=110)
    pyplot.close(picture)


@click.command(help="Our swarm beside llama.cpp, its RPC and upstream Petals, on the same weights.")
@click.argument("model", default="smollm2-135m")
@click.option("--quantize", type=click.Choice(sorted(precision.QUANTISED)), default="q4_0", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each process.")
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True)
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures there.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw a picture there (needs matplotlib).")
def main(
    model: str, quantize: str, threads: int, tokens: int, runs: int, json_file: Path | None, picture: Path | None
) -> None:
    """Run our swarm and its peers in turn, and print what each of them takes."""
    with user_errors():
        resolved = resolve.resolve(model)
        settings = PeerSettings(resolved.name, quantize, threads, tokens, runs)
        busy = psutil.cpu_percent(1.0)
        print_progress(f"the machine is {busy:.0f} % busy with other work")
        peers = compare(settings, resolved.path)
    found = {
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
        "machine": {**machine_facts(), "busy_before": busy, "llama.cpp": str(library().path.name)},
        "peers": figures(peers),
    }
    Console(width=max(Console().width, 120)).print(table(found))
    if json_file:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if picture:
        plot(found, picture)


if __name__ == "__main__":
    main()
