"""`swarm chat` with a real model, as somebody types it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from swarm import SwarmClient
from swarm.cli.chat.repl import ChatRepl
from tests.e2e.programs import Swarm

SYSTEM = "Answer in one sentence."


class Typed:
    """A person: types the lines, and keeps what each of them brought to the screen."""

    def __init__(self, *lines: str) -> None:
        self._lines = iter(lines)
        self._typed: list[str] = []
        self.answers, self.remarks = (Console(file=io.StringIO(), width=200) for _ in range(2))
        self.brought: dict[str, str] = {}

    def __call__(self, prompt: str = "") -> str:
        screen = "".join(console.file.getvalue() for console in (self.answers, self.remarks))  # type: ignore[attr-defined]
        if self._typed:
            self.brought[self._typed[-1]] = screen
        for console in (self.answers, self.remarks):
            console.file = io.StringIO()
        line = next(self._lines, None)
        if line is None:
            raise EOFError
        self._typed.append(line)
        return line


@pytest.fixture(scope="module")
def swarm(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """The real model, and the same one without its chat template."""
    home = tmp_path_factory.mktemp("chat")
    bare = home / "bare"
    bare.mkdir()
    for file in smollm2.iterdir():
        if file.suffix == ".safetensors":
            (bare / file.name).hardlink_to(file)
        elif file.name != "chat_template.jinja":
            shutil.copy(file, bare)
    with pytest.MonkeyPatch.context() as patch, Swarm(home / "home") as started:
        patch.setenv("SWARM_HOME", str(home / "home"))
        started.serve(smollm2, "0:15", "15:30", options=["--model-name", "real"])
        started.serve(bare, "0:30", options=["--model-name", "bare"])
        yield started


def chat(swarm: Swarm, monkeypatch: pytest.MonkeyPatch, model: str, *lines: str) -> dict[str, str]:
    typed = Typed(*lines)
    monkeypatch.setattr("builtins.input", typed)
    ChatRepl(
        lambda token: SwarmClient(token),
        swarm.token,
        model,
        SYSTEM,
        24,
        {"temperature": 0.0},
        answers=typed.answers,
        remarks=typed.remarks,
    ).run()
    return typed.brought


@pytest.mark.model
def test_a_conversation_is_kept_left_and_taken_up_again(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, again, third = "What is the capital of France?", "And of Italy?", "Which of the two is larger?"
    brought = chat(
        swarm,
        monkeypatch,
        "real",
        asked,
        again,
        "/save trip",
        "/clear",
        "What did I ask?",
        "/load trip",
        third,
        "/load",
    )
    assert "Paris" in brought[asked] and "Rome" in brought[again]
    assert "trip.json" in brought["/save trip"] and "4 messages, made with real" in brought["/load trip"]
    assert brought["/load"].strip() == "trip"
    straight = chat(swarm, monkeypatch, "real", asked, again, third)
    assert straight[third] == brought[third]  # as if nothing had come between


@pytest.mark.model
def test_a_model_without_a_template_is_asked_in_the_form_of_its_family(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = "What is the capital of France?"
    brought = chat(swarm, monkeypatch, "bare", asked, "/model", "/model real", "/clear", asked + " ")
    assert "bare on" in brought["/model"] and "asked in the form of ChatML" in brought["/model"]
    assert "ChatML" not in brought["/model real"]
    assert brought[asked] == brought[asked + " "]  # the template that it lacks says the same


@pytest.mark.model
def test_commands_say_what_is_wrong_and_the_chat_goes_on(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "What is the capital of France?"
    wrong = ("/fly", "/save", "/save ../x", "/load nothing", "/model nothing", "/connect swarm1:nothing")
    brought = chat(swarm, monkeypatch, "real", *wrong, "/peers", "/help", f"/connect {swarm.token}", "/system", asked)
    assert "error" in brought[f"/connect {swarm.token}"]  # it does not say which of the two models
    assert all(brought[line].startswith("error: ") for line in wrong)
    assert "15:30" in brought["/peers"] and "/save NAME" in brought["/help"]
    assert brought["/system"].strip() == SYSTEM
    assert "Paris" in brought[asked]
