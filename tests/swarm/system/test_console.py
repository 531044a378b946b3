"""Streams and the console's window, which differ most between platforms."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from swarm.system import console

ROOT = Path(__file__).parents[3]
ECHO = """import sys
from swarm.system import console
console.make_streams_lenient()
print(sys.stdin.readline().strip(), {!a})
"""


def echo(said: bytes, **environment: str) -> bytes:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    done = subprocess.run(
        [sys.executable, "-c", ECHO.format("Zoë 水 █")],
        input=said,
        capture_output=True,
        cwd=ROOT,
        env={**kept, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_piped_is_utf_8_whatever_the_code_page_of_the_country() -> None:
    assert echo("水\n".encode()) == "水 Zoë 水 █".encode()
    assert echo("水\n".encode(), LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0") == "水 Zoë 水 █".encode()


def test_a_console_that_knows_few_characters_is_shown_question_marks() -> None:
    assert echo(b"\x81\xe9\n", PYTHONIOENCODING="cp1252:strict") == "?é Zoë ? ?".encode("cp1252")


def test_a_program_without_streams_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as pythonw.exe and services have it
    console.make_streams_lenient()


def test_a_closed_window_asks_to_stop_and_waits_for_the_end() -> None:
    asked, returned = threading.Event(), threading.Event()
    closing = console.CloseHandler(asked.set, grace=60)

    def close() -> None:
        assert closing(2)
        returned.set()

    thread = threading.Thread(target=close)
    thread.start()
    assert asked.wait(60) and not returned.is_set()  # Windows would end the process if it had returned
    closing.ended.set()
    thread.join(60)
    assert returned.is_set()


def test_ctrl_c_and_ctrl_break_are_left_to_python() -> None:
    closing = console.CloseHandler(lambda: pytest.fail("it stopped"))
    assert not closing(0) and not closing(1)
