"""What `swarm doctor` makes of what it finds, on any platform: the tools of Windows speak as they do there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarm.cli.doctor.checks import accelerators, firewall, keys, machine, membership, ports
from swarm.cli.doctor.checks.accelerators import Gpu, TorchInstall
from swarm.cli.doctor.checks.membership import DirectoryAnswer, MembershipStatus

GB = 1_000_000_000

EXCLUDED = """
Protocol tcp Port Exclusion Ranges

Start Port    End Port
----------    --------
      5357        5357
      7680        7779
     50000       50059     *

* - Administered port exclusions.

"""
EXCLUDED_GERMAN = """
Ausschlussbereiche für TCP-Port

Startport    Endport
----------    --------
      5357        5357
      7680        7779

* - Verwaltete Portausschlüsse.
"""
# powercfg /query SCHEME_CURRENT SUB_SLEEP STANDBYIDLE, in French
POWERCFG = """GUID du mode de gestion de l'alimentation : 381b4222-f694-41f0-9685-ff5bb260df2e  (Utilisation normale)
  GUID du sous-groupe : 238c9fa8-0aad-41ed-83f4-97be242c8f20  (Veille)
    GUID du paramètre d'alimentation : 29f6c1db-86da-48c5-9fdb-f2b67b1f44da  (Veille après)
      Paramètre minimal possible : 0x00000000
      Paramètre maximal possible : 0xffffffff
      Incrément de paramètre possible : 0x00000001
      Unités de paramètre possibles : secondes
    Index de configuration secteur actuel : 0x00000708
    Index de configuration batterie actuel : 0x00000384
"""
PYTHON = r"D:\Zoë Müller\Python312\python.exe"
ALLOW = f"v2.31|Action=Allow|Active=TRUE|Dir=In|Protocol=6|Profile=Domain|Profile=Private|App={PYTHON}|Name=layerswarm|"
BLOCK = f"v2.31|Action=Block|Active=TRUE|Dir=In|Protocol=6|Profile=Public|App={PYTHON.lower()}|Name=python.exe|"
OTHERS = [
    "v2.31|Action=Allow|Active=TRUE|Dir=Out|Protocol=6|App=%SystemRoot%\\system32\\svchost.exe|Svc=x|Name=@y|",
    f"v2.31|Action=Block|Active=FALSE|Dir=In|Protocol=6|App={PYTHON}|Name=switched off|",
    f"v2.31|Action=Allow|Active=TRUE|Dir=In|Protocol=17|App={PYTHON}|Name=UDP only|",
    "v2.31|Action=Allow|Active=TRUE|Dir=In|Protocol=6|LPort=445|Name=no program|",
    "what is this",
]
RTX = Gpu("NVIDIA GeForce RTX 4070", 12 * GB, 11 * GB, "581.15", (13, 0), nvidia=True)


def test_a_python_that_torch_does_not_run_on_is_broken() -> None:
    assert machine.python((3, 12), 64).level == "ok"
    for version, bits in (((3, 12), 32), ((3, 10), 64), ((3, 14), 64)):
        finding = machine.python(version, bits)
        assert finding.level == "broken" and "python.org" in finding.mend


def test_little_memory_and_disk_are_warnings() -> None:
    assert (machine.memory(8 * GB, 16 * GB).level, machine.memory(GB, 16 * GB).level) == ("ok", "warning")
    assert machine.disk("here", 50 * GB).level == "ok"
    assert "SWARM_HOME" in machine.disk("here", GB).mend


def test_short_paths_matter_only_on_windows_where_the_home_is_deep() -> None:
    assert machine.long_paths(None, "/x" * 200).level == "skipped"
    assert machine.long_paths(True, "C:" + "\\deep" * 60).level == "ok"
    assert machine.long_paths(False, r"D:\Zoë\AppData\Local\swarm").level == "ok"
    finding = machine.long_paths(False, "C:" + "\\deep" * 30)
    assert finding.level == "warning" and "LongPathsEnabled" in finding.mend


def test_a_machine_that_falls_asleep_is_told_how_not_to() -> None:
    idle = machine.parse_sleep_timeouts(POWERCFG)
    assert idle == (1800, 900)
    assert machine.sleep(idle).what.startswith("this machine sleeps after 30 minutes")
    assert machine.sleep(machine.SleepTimeouts(0, 900)).level == "ok"
    assert machine.parse_sleep_timeouts('Invalid Parameters -- try "/?" for help') is None
    assert machine.sleep(None).level == "skipped"


def test_a_console_that_cannot_show_everything_is_a_warning() -> None:
    assert machine.console("utf-8", terminal=True).level == "ok"
    assert machine.console("cp1252", terminal=False).level == "warning"
    assert machine.console("no such code", terminal=True).level == "warning"


@pytest.mark.parametrize(
    ("found", "gpus", "level", "words"),
    [
        (TorchInstall("2.13.0+cpu"), [], "ok", "no NVIDIA GPU"),
        (TorchInstall("2.13.0+cu130", "13.0", usable=(RTX.name,)), [RTX], "ok", RTX.name),
        (TorchInstall("2.13.0+cpu"), [RTX], "warning", '"torch==2.13.0+cu130" --index-url https://download.pytorch.org/whl/cu130'),
        (TorchInstall("2.13.0+cpu"), [replace(RTX, cuda=(12, 8))], "warning", "driver 580 or later"),
        (TorchInstall("2.13.0+cu130", "13.0"), [replace(RTX, cuda=(12, 8))], "warning", "the driver serves CUDA 12.8"),
        (TorchInstall("2.13.0+cu130", "13.0"), [replace(RTX, cuda=None)], "warning", "does not say which CUDA"),
        (TorchInstall(error="ImportError: DLL load failed while importing _C"), [], "broken", "vc_redist.x64.exe"),
        (TorchInstall(error="ModuleNotFoundError: No module named 'torch'"), [], "broken", "pip install"),
    ],
)  # fmt: skip
def test_torch_is_compared_with_the_gpu_and_its_driver(
    found: TorchInstall, gpus: list[Gpu], level: str, words: str
) -> None:
    finding = accelerators.torch(found, gpus, PYTHON, windows=True)
    assert finding.level == level and words in f"{finding.what} {finding.mend}"


def test_every_gpu_gets_a_line_that_says_who_can_use_it() -> None:
    arc = Gpu("Intel(R) Arc(TM) Graphics", 16 * GB, shared=True)
    first, second = accelerators.cards([RTX, arc])
    assert first.what == "NVIDIA GeForce RTX 4070 (11.0 GB free of 12.0 GB of its own, driver 581.15, CUDA 13.0)"
    assert "16.0 GB of the main memory" in second.what and "not used by the backend transformers" in second.what
    assert [finding.level for finding in accelerators.cards([])] == ["ok"]


def test_a_model_is_compared_with_the_memory_by_its_blocks() -> None:
    assert "all of it fits" in accelerators.model_fit("m", 16 * GB, 32, 20 * GB, "the GPU").what
    assert "about 18 blocks fit" in accelerators.model_fit("m", 16 * GB, 32, 10 * GB, "the GPU").what
    nothing = accelerators.model_fit("m", 16 * GB, 32, GB // 4, "the GPU")
    assert nothing.level == "warning" and "--quantize" in nothing.mend


def test_ports_that_windows_keeps_are_found_in_any_language() -> None:
    assert ports.parse_excluded(EXCLUDED) == [(5357, 5357), (7680, 7779), (50000, 50059)]
    assert ports.parse_excluded(EXCLUDED_GERMAN) == [(5357, 5357), (7680, 7779)]
    assert ports.parse_excluded("The system cannot find the file specified.") == []
    kept = ports.port("swarm-directory", 7700, "--bind", "forbidden", "", ports.parse_excluded(EXCLUDED))
    assert kept.level == "warning" and "7680 to 7779" in kept.what and "net stop winnat" in kept.mend
    assert ports.port("x", 50000, "--bind", "free", "", ports.parse_excluded(EXCLUDED)).level == "ok"  # by the user


def test_a_port_is_free_or_says_who_has_it() -> None:
    def finding(state: ports.PortState, owner: str = "") -> tuple[str, str]:
        found = ports.port("swarm-gateway", 8000, "--port", state, owner, [])
        return found.level, f"{found.what} {found.mend}"

    assert finding("free")[0] == "ok"
    assert finding("in use", "swarm-gateway (process 7)")[0] == "ok"
    level, words = finding("in use", "nginx.exe (process 7)")
    assert level == "warning" and "nginx.exe" in words and "--port" in words
    level, words = finding("forbidden")
    assert level == "warning" and "excludedportrange" in words


def test_the_firewall_must_let_others_reach_what_listens() -> None:
    def finding(*rules: str) -> tuple[str, str]:
        found = firewall.firewall([*OTHERS, *rules], True, PYTHON)
        return found.level, f"{found.what} {found.mend}"

    level, words = finding()
    assert level == "warning" and "netsh advfirewall firewall add rule name=layerswarm" in words and PYTHON in words
    assert finding(ALLOW) == ("ok", f"others may reach {PYTHON} on Domain, Private networks ")
    level, words = finding(ALLOW, BLOCK)  # what a dismissed question of Windows leaves behind wins
    assert level == "broken" and "delete rule name=all" in words
    assert firewall.firewall(OTHERS, False, PYTHON).level == "ok"
    assert firewall.firewall(None, True, PYTHON).level == "skipped"


@pytest.mark.parametrize(
    ("sddl", "readable"),
    [
        ("O:BAD:AI(A;ID;FA;;;SY)(A;ID;FA;;;BA)(A;ID;FA;;;S-1-5-21-1-2-3-1001)", False),  # below a user's profile
        ("O:BAD:AI(A;ID;FA;;;BA)(A;ID;0x1200a9;;;BU)(A;ID;0x1301bf;;;AU)", True),  # below the root of a drive
        ("O:BAD:(A;;FR;;;WD)", True),
        ("O:BAD:(D;;FA;;;WD)(A;;FA;;;OW)", False),
        ("O:BAD:(A;;0x100116;;;BU)", False),  # writes only
        ("O:BAD:NO_ACCESS_CONTROL", True),
        ("O:BA", True),
    ],
)
def test_an_access_list_tells_whether_others_may_read(sddl: str, readable: bool) -> None:
    assert keys.others_may_read(sddl) is readable


def test_keys_that_others_can_read_come_with_the_command_that_closes_them() -> None:
    assert [f.level for f in keys.keys({}, {}, windows=False)] == ["ok"]
    found = keys.keys({"a.key": False, "b.key": True, "c.key": None}, {"d.key": "d.key holds no key"}, windows=True)
    assert [f.level for f in found] == ["broken", "warning", "skipped", "ok"]
    assert 'icacls "b.key"' in found[1].mend
    assert keys.keys({"b.key": True}, {}, windows=False)[0].mend == "chmod 600 'b.key'"


@pytest.mark.parametrize(
    ("statuses", "levels", "words"),
    [
        (["member", "member"], ["ok"], "0, 1 are admitted"),
        (["unreachable"], ["broken"], "no directory answers"),
        (["impostor"], ["broken"], "get a new join token"),
        (["newcomer"], ["ok"], "admits 0 at the next start"),
        (["member", "expelled"], ["ok", "broken"], "has expelled 1"),
        (["wrong token"], ["broken"], "refuses the join token"),
        (["member", "wrong token"], ["ok", "warning"], "0 is admitted"),
    ],
)
def test_what_a_directory_says_of_each_identity(
    statuses: list[MembershipStatus], levels: list[str], words: str
) -> None:
    answers = [DirectoryAnswer("10.0.0.1:7700", str(number), status) for number, status in enumerate(statuses)]
    found = membership.directory(answers, "")
    assert [finding.level for finding in found] == levels
    assert words in " ".join(f"{finding.what} {finding.mend}" for finding in found)


def test_a_wrong_clock_shows_in_what_the_directory_knows() -> None:
    now = 1_000_000.0
    member = DirectoryAnswer("x", "a", "member", (now - 100,))
    assert membership.clock([member], None, now).level == "ok"
    assert "2 hours behind" in membership.clock([member], None, now - 7400).what
    newcomer = DirectoryAnswer("x", "a", "newcomer")
    assert membership.clock([newcomer], None, now).level == "skipped"
    assert "3 days ahead" in membership.clock([newcomer], now - 3 * 86400, now).what
