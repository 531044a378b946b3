"""`swarm-server`: the command line of the program that serves a span of a model."""

from __future__ import annotations

from typing import Any

import click

from swarm.cli.options import advertise_option, backend_option, join_option, quantize_option, verbose_option
from swarm.server import program
from swarm.system import join
from swarm.system.process import log_to_stderr, stop_signals, user_errors


@click.command()
@click.argument("model")
@join_option
@click.option("--blocks", metavar="START:END", help="What to serve.  [default: the directory decides]")
@click.option(
    "--bind", default="", metavar="HOST:PORT", help="Where peers reach this server.  [default: any free port]"
)
@advertise_option
@click.option("--relayed", is_flag=True, help="No peer can dial this machine: let others come through a router only.")
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
    default=program.ServerSettings.drain,
    show_default=True,
    metavar="SECONDS",
    help="How long a server that is asked to stop waits for its sessions to move to others.",
)
@click.option(
    "--awake",
    type=click.FloatRange(0),
    default=program.ServerSettings.awake,
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
    with user_errors(), stop_signals() as stop:
        span = program.parse_span(blocks) if blocks else None
        settings = program.ServerSettings(join=join.find_join_token(join_token), blocks=span, **options)
        program.serve(settings, stop)
