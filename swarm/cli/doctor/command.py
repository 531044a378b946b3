"""`swarm doctor`: the command that puts probes and checks together and shows the findings."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

import click
import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from backends import artifact_cache
from routing.links import EXCLUDED
from routing.security import Identity, JoinToken, SecurityError
from swarm.cli.doctor.checks import accelerators, firewall, keys, machine, membership, ports
from swarm.cli.doctor.checks.finding import Finding, FindingLevel
from swarm.cli.doctor.probes import directory, nvidia, system, windows
from swarm.errors import SwarmError
from swarm.system import home
from swarm.system.firewall import listening_program
from swarm.system.join import find_join_token

WINDOWS = sys.platform == "win32"
USUAL_PORTS = (("swarm-directory", 7700, "--bind"), ("swarm-router", 7701, "--bind"), ("swarm-gateway", 8000, "--port"))
MAX_IDENTITIES = 8  # identities that are tried at a directory
COLOURS: dict[FindingLevel, str] = {"ok": "green", "skipped": "dim", "warning": "yellow", "broken": "bold red"}


def findings_of(
    join: str | None, model: str | None, show: Callable[[str], None] = lambda area: None
) -> Iterable[Finding]:
    """Everything that can be found out here, one area after the other.

    Args:
        join: the join token, where one was given.
        model: a model on this machine to compare with the memory.
        show: told what is looked at next.
    """
    show("the machine")
    yield machine.python(sys.version_info[:2], 64 if sys.maxsize > 1 << 32 else 32)
    memory = psutil.virtual_memory()
    yield machine.memory(memory.available, memory.total)
    yield machine.disk(str(home.home()), system.free_disk(home.home()), artifact_cache.size(home.home() / "spans"))
    yield machine.long_paths(windows.long_paths(), str(home.home()))
    idle = system.tool_output("powercfg", "/query", "SCHEME_CURRENT", "SUB_SLEEP", "STANDBYIDLE") if WINDOWS else ""
    yield machine.sleep(machine.parse_sleep_timeouts(idle))
    yield machine.console(
        sys.stdout.encoding if sys.stdout else "utf-8", sys.stdout is not None and sys.stdout.isatty()
    )
    show("torch and the GPUs")
    yield from _accelerator_findings(model, memory.available)
    show("ports and firewall")
    excluded = ports.parse_excluded(system.tool_output(*EXCLUDED.split())) if WINDOWS else []
    for program, number, option in USUAL_PORTS:
        state = system.port_state(number)
        yield ports.port(
            program, number, option, state, system.port_owner(number) if state == "in use" else "", excluded
        )
    yield firewall.firewall(windows.firewall_rules(), windows.firewall_on(), listening_program())
    show("keys and directories")
    yield from _key_findings()
    yield from _membership_findings(join)


def _accelerator_findings(model: str | None, memory: int) -> Iterable[Finding]:
    cards = nvidia.nvidia_gpus()
    cards += [card for card in windows.display_adapters() if not (card.nvidia and cards)]
    found, free = system.torch_install()
    yield from accelerators.cards(cards)
    yield accelerators.torch(found, cards, sys.executable, WINDOWS)
    if model is None:
        return
    size = system.model_size(model)
    if size is None:
        yield Finding("model", "skipped", f"{model} is not on this machine, so its size is not known")
    elif free is not None:
        yield accelerators.model_fit(model, *size, free, found.usable[0])
    else:
        yield accelerators.model_fit(model, *size, memory, "the main memory")


def _key_findings() -> Iterable[Finding]:
    readable: dict[str, bool | None] = {}
    damaged: dict[str, str] = {}
    for path in system.key_files():
        try:
            if path.parent.name == "identities":
                Identity.from_secret(path.read_bytes().strip())
            if WINDOWS:
                sddl = windows.access_list(path)
                readable[str(path)] = None if sddl is None else keys.others_may_read(sddl)
            else:
                readable[str(path)] = system.readable_by_others(path)
        except SecurityError:
            damaged[str(path)] = f"{path} holds no key"
        except OSError as error:
            damaged[str(path)] = f"{path} cannot be read: {error.strerror}"
    yield from keys.keys(readable, damaged, WINDOWS)


def _membership_findings(join: str | None) -> Iterable[Finding]:
    try:
        token = JoinToken.parse(find_join_token(join))
    except SwarmError:
        yield Finding("directory", "skipped", "no join token: give one with --join, or in SWARM_JOIN")
        return
    except SecurityError as error:
        yield Finding("directory", "broken", str(error), "copy the line after 'join:' where swarm-directory runs")
        return
    now = time.time()
    sites = directory.ask_directories(token, _identities())
    for answers in sites:
        yield from membership.directory(answers, token.expiry(now))
    yield membership.clock([answer for answers in sites for answer in answers], token.expires, now)


def _identities() -> dict[str, Identity]:
    paths = sorted((home.home() / "identities").glob("*.key"))[:MAX_IDENTITIES]
    found = {}
    for path in paths:
        try:
            found[path.stem] = Identity.from_secret(path.read_bytes().strip())
        except (OSError, SecurityError):
            continue  # said by `_key_findings`
    return found


def findings_json(findings: Sequence[Finding]) -> str:
    """The findings for programs, with facts about the machine."""
    about = {"platform": platform.platform(), "python": sys.version.split()[0], "home": str(home.home())}
    listed = [asdict(finding) for finding in findings]
    return json.dumps({**about, "broken": any_broken(findings), "findings": listed}, indent=2)


def any_broken(findings: Sequence[Finding]) -> bool:
    """Whether a program cannot do its work on this machine."""
    return any(finding.level == "broken" for finding in findings)


def findings_table(findings: Sequence[Finding]) -> Table:
    """For people: what was found, and below each trouble what to do."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text(finding.what)
        if finding.mend:
            text.append(f"\n{finding.mend}", style="bold" if finding.level == "broken" else "")
        table.add_row(Text(finding.level, style=COLOURS[finding.level]), Text(finding.subject), text)
    return table


@click.command()
@click.argument("model", required=False)
@click.option("--join", "join_token", envvar="SWARM_JOIN", metavar="TOKEN", help="Of the swarm to look at.")
@click.option("--json", "as_json_", is_flag=True, help="For programs.")
def doctor(model: str | None, join_token: str | None, as_json_: bool) -> None:
    """Say what is wrong on this machine and how to mend it. With MODEL, also whether that fits.

    Exit code 1 when something is broken, 0 when all is well or merely not as good as it could be.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()
    show = (lambda area: click.echo(f"looking at {area} ...", err=True)) if terminal else (lambda area: None)
    findings = list(findings_of(join_token, model, show))
    if as_json_:
        click.echo(findings_json(findings))
    else:
        Console(width=None if sys.stdout.isatty() else 160, soft_wrap=not sys.stdout.isatty()).print(
            findings_table(findings)
        )
    raise SystemExit(1 if any_broken(findings) else 0)
