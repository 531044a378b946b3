"""Options that several commands share, as decorators, and the settings that `config.toml` gives them.

Every option may also come from the environment (`SWARM_JOIN`, `SWARM_SERVER_BIND`, ...) or from `config.toml` under
`SWARM_HOME`, where a table bears the command's name:

    [server]
    bind = "0.0.0.0:7701"
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from swarm.client.client import SwarmClient
from swarm.system import home, join

P = ParamSpec("P")
R = TypeVar("R")

join_option = click.option(
    "--join", "join_token", envvar="SWARM_JOIN", metavar="TOKEN", help="The line that the directory prints."
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Log what happens in detail.")
advertise_option = click.option(
    "--advertise", multiple=True, metavar="HOST", help="The name under which others reach this machine."
)
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
    help="How long an answer waits for a server of blocks that were lost.",
)


def config_settings() -> dict[str, Any]:
    """The settings in `config.toml`; none where there is no such file.

    Raises:
        click.ClickException: the file is not TOML, or cannot be read.
    """
    path = home.home() / "config.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} cannot be used: {error}. Mend it, or move it away.") from error


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """The options of a command that generates text.

    Attributes:
        join_token: None: that of the swarm that was last started on this machine.
        max_new_tokens: tokens of each answer, at most.
        seed: None: a new one for each run.
        private: only servers of this `SWARM_HOME` see text.
        verify: how many parts of each answer are computed anew.
        patience: seconds that an answer waits for a server of lost blocks.
    """

    join_token: str | None
    max_new_tokens: int
    temperature: float
    seed: int | None
    private: bool
    verify: int
    patience: float

    def connect(self, token: str | None = None) -> SwarmClient:
        """A client of the swarm of `token`, by default of the one that the options name. The caller closes it.

        Raises:
            SwarmError, DirectoryError, SecurityError: no swarm is named, or it cannot be joined.
        """
        return SwarmClient(token or join.find_join_token(self.join_token), patience=self.patience, private=self.private)


def generation_options(
    max_new_tokens: int,
) -> Callable[[Callable[Concatenate[GenerationOptions, P], R]], Callable[P, R]]:
    """A decorator that adds the options of a command that generates text, and gives them as one object, first."""
    options = (
        join_option,
        click.option("--max-new-tokens", type=click.IntRange(1), default=max_new_tokens, show_default=True),
        temperature_option,
        seed_option,
        private_option,
        verify_option,
        patience_option,
    )

    def add(command: Callable[Concatenate[GenerationOptions, P], R]) -> Callable[P, R]:
        @functools.wraps(command)
        def collected(*args: Any, **given: Any) -> R:
            names = GenerationOptions.__dataclass_fields__
            return command(GenerationOptions(**{name: given.pop(name) for name in names}), *args, **given)

        decorated: Callable[..., R] = collected
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return add
