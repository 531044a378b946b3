"""Check of the firewall of Windows: its rules for a program that listens.

The rules are read from the registry, where they are the same in every language of Windows and any user may read them:
`HKLM\\SYSTEM\\CurrentControlSet\\Services\\SharedAccess\\Parameters\\FirewallPolicy\\FirewallRules`, in the format of
[MS-GPFAS] 2.2.2. What `netsh advfirewall firewall show rule` prints is translated.
"""

from __future__ import annotations

import ntpath
from collections.abc import Sequence
from typing import NamedTuple

from swarm.cli.doctor.checks.finding import Finding
from swarm.system.firewall import rule_command


class FirewallRule(NamedTuple):
    """An inbound rule that is switched on, for one program. `profiles`: empty means every kind of network."""

    allows: bool
    program: str
    protocol: str
    profiles: frozenset[str]
    name: str


def parse_rule(text: str) -> FirewallRule | None:
    """From `v2.31|Action=Allow|Active=TRUE|Dir=In|Protocol=6|Profile=Private|App=C:\\...|Name=...|`.

    None: it is of no matter here (outbound, switched off, for no program).
    """
    pairs = [part.partition("=") for part in text.split("|") if "=" in part]
    fields = {key: value for key, _, value in pairs}
    if fields.get("Dir") != "In" or fields.get("Active") != "TRUE" or "App" not in fields:
        return None
    profiles = frozenset(value for key, _, value in pairs if key == "Profile")
    return FirewallRule(
        fields.get("Action") == "Allow", fields["App"], fields.get("Protocol", ""), profiles, fields.get("Name", "")
    )


def firewall(rules: Sequence[str] | None, on: bool, program: str) -> Finding:
    """Whether the firewall of Windows lets peers reach a program.

    Args:
        rules: the registry's values; None: this is not Windows.
        on: whether the firewall is switched on for any kind of network.
        program: the executable that listens.
    """
    if rules is None:
        return Finding(
            "firewall",
            "skipped",
            "only that of Windows is looked at; others must be able to reach the ports of directory and servers",
        )
    if not on:
        return Finding("firewall", "ok", "the firewall of Windows is switched off; another one may be there")
    wanted = ntpath.normcase(program)
    ours = [r for text in rules if (r := parse_rule(text)) is not None and ntpath.normcase(r.program) == wanted]
    tcp = [each for each in ours if each.protocol in ("", "6")]
    blocking = [each for each in tcp if not each.allows]
    if blocking:
        # Windows makes these when its question is dismissed; they win over every rule that allows.
        mend = (
            f'as an administrator: netsh advfirewall firewall delete rule name=all dir=in program="{program}" && '
            f"{rule_command(program)}"
        )
        return Finding("firewall", "broken", f"a rule keeps others from reaching {program}", mend)
    allowing = [each for each in tcp if each.allows]
    if not allowing:
        what = f"no rule lets others reach {program}; this machine alone can"
        return Finding("firewall", "warning", what, f"as an administrator: {rule_command(program)}")
    networks = frozenset[str]().union(*(each.profiles for each in allowing))
    where = (
        "every network" if any(not each.profiles for each in allowing) else f"{', '.join(sorted(networks))} networks"
    )
    return Finding("firewall", "ok", f"others may reach {program} on {where}")
