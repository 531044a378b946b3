"""`swarm cache`, over spans that backends have really made."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from backends import Options, Span, registry
from swarm.cli.doctor.checks import machine
from swarm.cli.main import cli
from tests.backends.test_llamacpp import needs_library
from tests.families import make_model


def swarm(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "spans"


def test_nothing_is_there_and_nothing_is_deleted(spans: Path) -> None:
    assert json.loads(swarm("cache", "--json")) == []
    assert swarm("cache", "clear") == "nothing to delete\n"
    assert not spans.exists()


@needs_library
def test_spans_are_listed_and_those_that_nobody_uses_are_cleared(spans: Path) -> None:
    folder = make_model("llama", spans.parent / "models" / "somebody--tiny")
    backend = registry.find("llama_cpp")
    asked = Options(device="cpu", quantize="q4_0", cache=spans)
    serving, gone = backend.load(folder, Span(0, 2), asked), backend.load(folder, Span(2, 6), asked)
    del gone
    listed = {each["blocks"]: each for each in json.loads(swarm("cache", "--json"))}
    assert {blocks: each["open"] for blocks, each in listed.items()} == {"0:2": True, "2:6": False}
    for each in listed.values():
        assert (each["name"], each["backend"], each["precision"]) == ("somebody/tiny", "llama_cpp", "q4_0")
        assert each["model"] == str(folder) and each["size"] > 50_000
    table = swarm("cache")
    assert "somebody/tiny" in table and "in use" in table and "now" in table

    assert swarm("cache", "clear", "--older-than", "1h") == "nothing to delete\n"
    long_ago = time.time() - 7200
    for each in listed.values():
        os.utime(Path(each["path"]) / "entry.json", (long_ago, long_ago))
    assert swarm("cache", "clear", "--older-than", "1h").splitlines() == [
        "freed 1 MB",
        "in use and left: somebody/tiny 0:2",
    ]
    (left,) = json.loads(swarm("cache", "--json"))
    assert left["blocks"] == "0:2"
    del serving
    swarm("cache", "clear")
    assert json.loads(swarm("cache", "--json")) == []
    backend.load(folder, Span(0, 2), asked)  # and is made anew
    assert [each["blocks"] for each in json.loads(swarm("cache", "--json"))] == ["0:2"]


def test_compiled_blocks_of_a_model_are_one_entry(spans: Path) -> None:
    pytest.importorskip("onnxruntime_genai", reason="the extra onnx is not installed")
    folder = make_model("llama", spans.parent / "tiny")
    backend = registry.find("onnx")
    asked = Options(device="cpu", quantize="int4", cache=spans)
    backend.load(folder, Span(0, 2), asked)
    stage = backend.load(folder, Span(4, 5), asked)
    (kept,) = json.loads(swarm("cache", "--json"))
    assert (kept["name"], kept["blocks"], kept["precision"], kept["open"]) == ("tiny", "0:2, 4:5", "int4", True)
    del stage
    swarm("cache", "clear")
    assert json.loads(swarm("cache", "--json")) == []


def test_the_doctor_counts_spans_and_says_how_to_be_rid_of_them() -> None:
    assert "spans" not in machine.disk("here", 50_000_000_000).what
    assert "spans for servers take 3.0 GB" in machine.disk("here", 50_000_000_000, 3_000_000_000).what
    assert machine.disk("here", 1_000_000_000, 3_000_000_000).mend.startswith("swarm cache clear")
