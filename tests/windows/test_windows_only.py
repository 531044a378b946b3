"""What only Windows does: job objects, files that are held open, names without capitals, the registry."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from openai_api.http.server import listen
from swarm.cli.doctor.checks import keys
from swarm.cli.doctor.checks.accelerators import Gpu
from swarm.cli.doctor.probes import windows
from swarm.errors import SwarmError
from swarm.models import pypi, resolve
from swarm.system import firewall
from swarm.system.jobs import JobObject
from swarm.system.process import stop_signals
from tests.windows.programs import ROOT
from tests.windows.wine import windows_only, wine

pytestmark = windows_only

PARENT = """
import subprocess, sys
from swarm.system.jobs import JobObject
job = JobObject()
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, job.add(child.pid), flush=True)
sys.stdin.read()
"""


def test_a_killed_parent_takes_the_children_of_its_job_along() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None and parent.stdin is not None
    pid, added = parent.stdout.readline().split()
    child = psutil.Process(int(pid))
    assert added == "True" and child.is_running()
    parent.kill()
    assert child.wait(60) is not psutil.STATUS_RUNNING and not psutil.pid_exists(int(pid))
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()


class FakeDxgi:
    """COM objects by hand: a pointer to a table of functions, each of which gets the object first."""

    def __init__(self, *described: tuple[str, int, int, int, int]) -> None:
        import ctypes

        self.described = described
        self.released = 0
        one, two = ctypes.c_uint, ctypes.c_void_p
        release = ctypes.WINFUNCTYPE(ctypes.c_long, two)(self._release)
        enumerate_adapters = ctypes.WINFUNCTYPE(ctypes.c_long, two, one, two)(self._enumerate)
        describe = ctypes.WINFUNCTYPE(ctypes.c_long, two, two)(self._describe)
        self._functions = (release, enumerate_adapters, describe)
        table = (ctypes.c_void_p * 14)()
        table[2], table[12] = (ctypes.cast(each, two).value for each in (release, enumerate_adapters))
        self._table = table
        self._objects = [(ctypes.c_void_p * 2)(ctypes.addressof(table), index) for index in range(len(described) + 1)]
        adapter_table = self._adapter_table = (ctypes.c_void_p * 14)()
        adapter_table[2], adapter_table[10] = (ctypes.cast(each, two).value for each in (release, describe))
        for each in self._objects[1:]:
            each[0] = ctypes.addressof(adapter_table)
        self.factory = ctypes.c_void_p(ctypes.addressof(self._objects[0]))

    def _release(self, this: int) -> int:
        self.released += 1
        return 0

    def _enumerate(self, this: int, index: int, out: int) -> int:
        import ctypes

        if index >= len(self.described):
            return -2005270526  # DXGI_ERROR_NOT_FOUND
        ctypes.c_void_p.from_address(out).value = ctypes.addressof(self._objects[index + 1])
        return 0

    def _describe(self, this: int, out: int) -> int:
        import ctypes

        index = next(i for i, each in enumerate(self._objects) if ctypes.addressof(each) == this)
        description = windows._AdapterDescription.from_address(out)
        name, description.vendor, description.own, description.shared, description.flags = self.described[index - 1]
        description.description = name
        return 0


def test_gpus_are_read_out_of_what_direct3d_enumerates() -> None:
    """Against objects made here, because Wine has no Direct3D without a display."""
    dxgi = FakeDxgi(
        ("NVIDIA GeForce RTX 4070", 0x10DE, 12 << 30, 16 << 30, 0),
        ("Intel(R) Iris(R) Xe Graphics", 0x8086, 128 << 20, 8 << 30, 0),
        ("Microsoft Basic Render Driver", 0x1414, 0, 8 << 30, 2),
    )
    assert windows.adapters_of(dxgi.factory) == [
        Gpu("NVIDIA GeForce RTX 4070", 12 << 30, nvidia=True),
        Gpu("Intel(R) Iris(R) Xe Graphics", 8 << 30, shared=True),
    ]
    assert dxgi.released == 4


def test_a_child_that_is_gone_is_no_error() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    del child
    assert JobObject().add(0x7FFFFFF0) is False


def test_ctrl_break_stops_a_program_in_order() -> None:
    if sys.platform == "win32":  # for mypy, which reads this elsewhere
        with stop_signals() as stop:
            stop.abrupt = False
            signal.raise_signal(signal.SIGBREAK)
            assert stop.wait(60)


def test_a_second_program_does_not_get_the_gateways_port() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(SwarmError, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])


@wine("it renames folders that hold an open file")
def test_a_model_that_is_in_use_is_not_replaced_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi, "_SCANNED", 2)
    for name in ("made", "tiny"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    with (tmp_path / "tiny" / "model.safetensors").open("rb"), pytest.raises(SwarmError, match="in use"):
        pypi.move_into_place(tmp_path / "made", tmp_path / "tiny")


def test_a_model_is_found_in_any_capitals_and_named_as_on_disk(swarm_home: Path) -> None:
    folder = swarm_home / "models" / "Owner--Some-Model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert resolve.resolve("owner/some-model").name == "Owner/Some-Model"
    assert resolve.resolve(str(folder).upper()).name == "Owner--Some-Model"


def test_the_system_tells_what_the_doctor_asks(tmp_path: Path) -> None:
    assert windows.long_paths() in (True, False)
    assert windows.firewall_on() in (True, False)
    assert isinstance(windows.firewall_rules(), list)
    assert isinstance(windows.display_adapters(), list)
    (tmp_path / "key").write_text("secret")
    sddl = windows.access_list(tmp_path / "key")
    assert sddl is not None and "D:" in sddl
    keys.others_may_read(sddl)
    assert windows.access_list(tmp_path / "none") is None
    assert Path(firewall.listening_program()).name.lower() == "python.exe"
