"""The commands. Every option may also come from the environment (`SWARM_JOIN`, `SWARM_SERVER_BIND`, ...) or from
`config.toml` under `SWARM_HOME`, where a table bears the command's name:

    [server]
    bind = "0.0.0.0:7701"
"""

from __future__ import annotations

import json
import sys
import time
import tomllib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.table import Table

from swarm import __version__
from swarm.cli import admin
from swarm.cli.cache import cache
from swarm.cli.doctor.command import doctor
from swarm.cli.extensions import Extensible
from swarm.client.client import SwarmClient
from swarm.models import resolve
from swarm.models.catalogue import CATALOGUE, DEFAULT
from swarm.server import program as serving
from swarm.system import console, firewall, home, join
from swarm.system.process import announce, clear_errors, log_to_stderr, stopping

P = ParamSpec("P")
R = TypeVar("R")


def from_file() -> dict[str, Any]:
    """The settings in `config.toml`.

    Raises:
        click.ClickException: the file is not TOML.
    """
    path = home.home() / "config.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} cannot be used: {error}") from error


def _started(program: str) -> dict[str, Any]:
    """Arguments for `main()` of a command that is a program of its own."""
    return {
        "prog_name": f"swarm-{program}",
        "auto_envvar_prefix": f"SWARM_{program.upper()}",
        "default_map": from_file().get(program, {}),
    }


def _run(command: click.Command, **arguments: Any) -> None:
    console.tolerate()
    command.main(**arguments)


def server_main() -> None:
    _run(server, **_started("server"))


def directory_main() -> None:
    _run(directory, **_started("directory"))


def router_main() -> None:
    _run(router, **_started("router"))


def client_main() -> None:
    _run(client, **_started("client"))


def main() -> None:
    _run(cli, prog_name="swarm", auto_envvar_prefix="SWARM", default_map=from_file())


join_option = click.option(
    "--join", "join_token", envvar="SWARM_JOIN", metavar="TOKEN", help="The line that the directory prints."
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Log what happens in detail.")
backend_option = click.option(
    "--backend",
    default="transformers",
    show_default=True,
    metavar="NAME",
    help="What computes: transformers, llama_cpp, onnx, petals; auto: the fastest one here that keeps the precision.",
)
quantize_option = click.option(
    "--quantize",
    type=click.Choice(["int8", "nf4", "int4", "q8_0", "q6_k", "q5_k", "q4_k", "q5_0", "q4_1", "q4_0"]),
    help="Fewer bits for the weights. int8: transformers, onnx; nf4: transformers; int4: onnx; the others: llama_cpp.  "
    "[default: as they are stored]",
)
temperature_option = click.option("--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True)
seed_option = click.option("--seed", type=click.IntRange(0), help="Makes a temperature above 0 repeatable.")
private_option = click.option(
    "--private", is_flag=True, help="Only servers that run from this SWARM_HOME may see text: the first and the last."
)
verify_option = click.option(
    "--verify",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Have parts of each answer computed anew N times, each time with one server of the route replaced.",
)
patience_option = click.option(
    "--patience",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long an answer waits for somebody to serve blocks that were lost.",
)


def talking(new_tokens: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The options of a command that talks to a model."""
    options = [
        join_option,
        click.option("--max-new-tokens", type=click.IntRange(1), default=new_tokens, show_default=True),
        temperature_option,
        seed_option,
        private_option,
        verify_option,
        patience_option,
    ]

    def add(command: Callable[P, R]) -> Callable[P, R]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group(cls=Extensible, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="swarm")
def cli() -> None:
    """Run a language model that is too large for one machine across several."""


@cli.command()
@click.argument("model", default=DEFAULT)
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
    from swarm.cli.up import up as start

    log_to_stderr(verbose)
    options = ["--dtype", dtype, "--device", device, *(["--quantize", quantize] if quantize else [])]
    with clear_errors(), stopping() as stop:
        start(model, servers, port, not no_browser, share, backend, options, stop, verify)


@cli.command()
@click.option("--bind", default="0.0.0.0:7700", show_default=True, metavar="HOST:PORT", help="Port 0: any free one.")
@click.option("--state-dir", type=click.Path(file_okay=False), help="Keys and members.  [default: under SWARM_HOME]")
@click.option("--advertise", multiple=True, metavar="HOST", help="The name under which others reach this machine.")
@click.option("--token-expires", type=click.FloatRange(min=0), metavar="SECONDS", help="After this, nobody can enrol.")
@click.option("--join", "join_token", metavar="TOKEN", help="Of 'swarm token create --directory': be one of several.")
@click.option("--name", default="", help="Shown to others.  [default: this machine's, with '-directory']")
@verbose_option
def directory(
    bind: str,
    state_dir: str | None,
    advertise: tuple[str, ...],
    token_expires: float | None,
    join_token: str | None,
    name: str,
    verbose: bool,
) -> None:
    """Admit peers, keep who is there, and assign spans."""
    from pathlib import Path

    from routing.directory.directory import Directory
    from routing.security import JoinToken

    log_to_stderr(verbose)
    with clear_errors(), stopping() as stop:
        folder = Path(state_dir) if state_dir else home.folder("directory")
        others = JoinToken.parse(join_token) if join_token else None
        firewall.tell_once(bind.rpartition(":")[0])
        service = Directory(bind, folder, advertise=advertise, token_ttl=token_expires, join=others, name=name)
        try:
            announce(f"join: {service.token}")
            stop.abrupt = False
            service.run(stop)
        finally:
            service.close()


@cli.command()
@click.argument("model")
@join_option
@click.option("--blocks", metavar="START:END", help="What to serve.  [default: the directory decides]")
@click.option(
    "--bind", default="", metavar="HOST:PORT", help="Where peers reach this server.  [default: any free port]"
)
@click.option("--advertise", multiple=True, metavar="HOST", help="The name under which others reach this machine.")
@click.option("--relayed", is_flag=True, help="Nobody can dial this machine: let others come through a router only.")
@backend_option
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps; onnx: dml, tensorrt_rtx")
@click.option("--dtype", default="auto", show_default=True, help="float32, bfloat16, float16; auto: as stored")
@quantize_option
@click.option(
    "--kv-dtype",
    type=click.Choice(["auto", "float32", "float16", "q8_0"]),
    default="auto",
    show_default=True,
    help="What the KV cache is kept as.  [only with --backend llama_cpp]",
)
@click.option("--kv-tokens", type=click.IntRange(1), help="Tokens of all sessions together.  [default: by free memory]")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: the cores]")
@click.option(
    "--drain",
    type=click.FloatRange(0),
    default=serving.ServerSettings.drain,
    show_default=True,
    metavar="SECONDS",
    help="How long a server that is asked to stop waits for its sessions to move to others.",
)
@click.option(
    "--awake",
    type=click.FloatRange(0),
    default=serving.ServerSettings.awake,
    show_default=True,
    metavar="SECONDS",
    help="How long it stays awake for the next step of an answer, which is faster and takes power. 0: never.",
)
@click.option("--name", default="", help="Shown to others.  [default: the name of this machine]")
@click.option("--model-name", default="", help="The model's name in the swarm.")
@verbose_option
def server(join_token: str | None, blocks: str | None, verbose: bool, **options: Any) -> None:
    """Serve a span of MODEL: a folder, a GGUF file, a Hugging Face repo id or a catalogue name."""
    log_to_stderr(verbose)
    with clear_errors(), stopping() as stop:
        span = serving.parse_span(blocks) if blocks else None
        serving.serve(serving.ServerSettings(join=join.find(join_token), blocks=span, **options), stop)


@cli.command()
@join_option
@click.option("--bind", default="0.0.0.0:7701", show_default=True, metavar="HOST:PORT", help="Port 0: any free one.")
@click.option("--advertise", multiple=True, metavar="HOST", help="The name under which others reach this machine.")
@click.option("--name", default="", help="Shown to others.  [default: router-1, router-2, ...]")
@verbose_option
def router(join_token: str | None, bind: str, advertise: tuple[str, ...], name: str, verbose: bool) -> None:
    """Relay to servers that nobody can dial, because they are behind a NAT or a firewall."""
    from swarm.cli import router as relaying

    log_to_stderr(verbose)
    with clear_errors(), stopping() as stop:
        relaying.relay(join.find(join_token), bind, advertise, name, stop)


@cli.command()
@click.argument("model")
@click.argument("prompt", required=False)
@talking(128)
def client(
    model: str,
    prompt: str | None,
    join_token: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int | None,
    private: bool,
    verify: int,
    patience: float,
) -> None:
    """Continue PROMPT, or each line of standard input, as it stands (no chat template)."""
    from swarm.cli import generate

    with clear_errors(), SwarmClient(join.find(join_token), patience=patience, private=private) as swarm:
        model = generate.pick_model(swarm, model).name
        tokenizer = generate.tokenizer_of(swarm, model)
        options = generate.sampling_options(tokenizer, temperature, seed)
        for text in [prompt] if prompt is not None else map(str.rstrip, sys.stdin):
            if text:
                generate.answer(swarm, model, tokenizer.encode(text), max_new_tokens, options, verify)


@cli.command("run")
@click.argument("model")
@click.argument("prompt")
@talking(512)
def run(
    model: str,
    prompt: str,
    join_token: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int | None,
    private: bool,
    verify: int,
    patience: float,
) -> None:
    """Ask MODEL one question, through its chat template where it has one."""
    from swarm.cli import generate

    with clear_errors(), SwarmClient(join.find(join_token), patience=patience, private=private) as swarm:
        model = generate.pick_model(swarm, model).name
        tokenizer = generate.tokenizer_of(swarm, model)
        ids = (
            tokenizer.chat([{"role": "user", "content": prompt}])
            if tokenizer.has_chat_template
            else tokenizer.encode(prompt)
        )
        generate.answer(
            swarm, model, ids, max_new_tokens, generate.sampling_options(tokenizer, temperature, seed), verify
        )


@cli.command()
@click.argument("model", required=False)
@click.option("--system", help="What the model is told before the conversation.")
@talking(512)
def chat(
    model: str | None,
    join_token: str | None,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int | None,
    private: bool,
    verify: int,
    patience: float,
) -> None:
    """Talk to MODEL. /help in the chat lists its commands."""
    from swarm.cli.chat import Chat
    from swarm.cli.generate import sampling

    def connect(token: str) -> SwarmClient:
        return SwarmClient(token, patience=patience, private=private)

    with clear_errors():
        found = join.find(join_token)
        Chat(connect, found, model, system, max_new_tokens, sampling(temperature, seed), verify).run()


@cli.command()
@join_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--watch", is_flag=True, help="Draw it again whenever it changes, until Ctrl-C.")
def status(join_token: str | None, as_json: bool, watch: bool) -> None:
    """Who serves which blocks."""
    from rich.live import Live

    from swarm.cli import status as drawing

    with clear_errors(), SwarmClient(join.find(join_token)) as swarm:
        if as_json:
            click.echo(json.dumps(drawing.as_json(swarm.models(), swarm.view), indent=2))
        elif watch:
            with Live(refresh_per_second=2, get_renderable=lambda: drawing.draw(swarm.models(), swarm.view)):
                while True:
                    time.sleep(1)
        else:
            Console(width=None if sys.stdout.isatty() else 120).print(drawing.draw(swarm.models(), swarm.view))


@cli.command("models")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_models(as_json: bool) -> None:
    """The models that have a name here, and those that are on this machine."""
    with clear_errors():
        here = resolve.present()
        names = [*CATALOGUE, *(name for name in here if name not in CATALOGUE)]
        if as_json:
            click.echo(json.dumps([{"name": name, "here": name in here} for name in names], indent=2))
            return
        table = Table(box=None, header_style="dim")
        for title in ("model", "size", "licence", "on this machine"):
            table.add_column(title)
        for name in names:
            entry = CATALOGUE.get(name)
            size, licence = (home.size(entry.size), entry.licence) if entry else ("", "")
            table.add_row(name, size, licence, "yes" if name in here else "")
        Console().print(table)


@cli.command()
@click.argument("model", required=False)
@join_option
@click.option("--prompt-tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=64, show_default=True, help="Of each answer.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def bench(model: str | None, join_token: str | None, prompt_tokens: int, tokens: int, runs: int, as_json: bool) -> None:
    """How fast the swarm answers one stream."""
    from dataclasses import asdict

    from swarm.cli import bench as measuring
    from swarm.cli import generate

    with clear_errors(), SwarmClient(join.find(join_token)) as swarm:
        served = generate.pick_model(swarm, model)
        done = []
        with click.progressbar(length=runs, label="measuring", file=sys.stderr) as bar:
            for run in measuring.measure(swarm, served, prompt_tokens, tokens, runs):
                done.append(run)
                bar.update(1)
        if as_json:
            click.echo(json.dumps({"model": served.name, "runs": [asdict(run) for run in done]}, indent=2))
        else:
            Console().print(measuring.as_table(served, done))


cli.add_command(directory)
cli.add_command(server)
cli.add_command(router)
cli.add_command(client)
cli.add_command(doctor)
cli.add_command(cache)
for command in admin.commands:
    cli.add_command(command)
