"""The firewall rule of Windows: which program it names, and when it is shown."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from swarm.system import firewall


def test_the_firewall_rule_is_told_once_for_each_program_that_others_shall_reach(
    swarm_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for host in ("127.0.0.1", "localhost", "::1"):
        firewall.log_rule_once(host, windows=True)
    firewall.log_rule_once("0.0.0.0", windows=False)
    assert not caplog.messages and not swarm_home.exists()
    firewall.log_rule_once("0.0.0.0", windows=True)
    firewall.log_rule_once("192.168.1.7", windows=True)
    (line,) = caplog.messages
    assert firewall.rule_command(firewall.listening_program()) in line and "swarm doctor" in line


def test_the_rule_names_the_executable_that_listens() -> None:
    rule = firewall.rule_command(r"D:\Zoë Müller\python.exe")
    assert rule == (
        "netsh advfirewall firewall add rule name=layerswarm dir=in action=allow protocol=TCP profile=private,domain "
        r'program="D:\Zoë Müller\python.exe"'
    )
    assert Path(firewall.listening_program()).samefile(sys.executable) or sys.prefix != sys.base_prefix
