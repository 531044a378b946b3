"""Options that commands share: where their values come from, and what a command is given."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from swarm.cli.main import cli
from swarm.cli.options import GenerationOptions, config_settings, generation_options


@click.command()
@click.argument("word")
@generation_options(max_new_tokens=7)
def probe(options: GenerationOptions, word: str) -> None:
    click.echo(f"{word} {options}")


@pytest.mark.parametrize(
    ("arguments", "environment", "temperature"),
    [
        ([], {}, 0.25),
        ([], {"PROBE_TEMPERATURE": "0.5"}, 0.5),
        (["--temperature", "1"], {"PROBE_TEMPERATURE": "0.5"}, 1.0),
    ],
)
def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    swarm_home: Path, arguments: list[str], environment: dict[str, str], temperature: float
) -> None:
    swarm_home.mkdir()
    (swarm_home / "config.toml").write_text("[probe]\ntemperature = 0.25\nseed = 3\n")
    given = {"auto_envvar_prefix": "PROBE", "default_map": config_settings()["probe"]}
    done = CliRunner().invoke(probe, ["hello", *arguments], env={"SWARM_JOIN": None, **environment}, **given)
    wanted = GenerationOptions(None, 7, temperature, 3, private=False, verify=0, patience=30.0)
    assert done.output == f"hello {wanted}\n"


def test_without_a_file_there_are_no_settings_and_a_damaged_one_is_named(swarm_home: Path) -> None:
    assert config_settings() == {}
    swarm_home.mkdir()
    (swarm_home / "config.toml").write_text("[server\n")
    with pytest.raises(click.ClickException, match=r"config\.toml cannot be used: .*Mend it"):
        config_settings()


def test_every_command_says_in_its_help_what_it_does() -> None:
    def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        found = []
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            found.append((*path, name))
            if isinstance(command, click.Group):
                found += commands(command, (*path, name))
        return found

    for words in commands(cli):
        done = CliRunner().invoke(cli, [*words, "--help"])
        usage, _, text = done.output.partition("\n\n")
        assert done.exit_code == 0 and usage.startswith("Usage:") and text.strip()[0].isupper(), done.output
