"""The map of the swarm in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from swarm import SwarmClient
from tests.e2e.programs import Swarm
from tests.ui.chatting import LIMIT, ask, growing
from tests.ui.conftest import MODEL, OpenPage, serve

Shot = Callable[[Page, str], None]
Accessible = Callable[[Page], None]


@pytest.fixture(scope="module")
def swarm(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """A swarm of this module's own, because its servers come and go."""
    home = tmp_path_factory.mktemp("console") / "home"
    with pytest.MonkeyPatch.context() as patch, Swarm(home) as swarm:
        patch.setenv("SWARM_HOME", str(home))
        serve(swarm, smollm2, head="0:15", tail="15:30", spare="15:30")
        yield swarm


@pytest.fixture(scope="module")
def url(swarm: Swarm) -> str:
    return swarm.gateway()


def bar(page: Page, name: str) -> object:
    return page.get_by_role("button", name=re.compile(f"^{name} "))


def test_a_server_leaves_the_map_and_it_heals(
    url: str, swarm: Swarm, smollm2: Path, open_page: OpenPage, shot: Shot, accessible: Accessible
) -> None:
    page = open_page(url)
    ask(page, "Tell me a long story about a lighthouse keeper.")
    growing(page)
    page.get_by_role("button", name="Swarm", exact=True).click()
    coverage = page.get_by_role("list", name="Servers for each block").get_by_role("listitem")
    expect(coverage).to_have_text([re.compile("0:15: 1"), re.compile("15:30: 2")], timeout=LIMIT)
    expect(page.get_by_text("every block is served", exact=True)).to_be_visible()
    expect(bar(page, "head")).to_have_accessible_name(re.compile(r"1 session, [1-9]\d*% of its cache"), timeout=LIMIT)
    shot(page, "swarm-map")
    accessible(page)
    page.get_by_role("button", name="Chat", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Swarm", exact=True).click()

    bar(page, "head").click()
    panel = page.get_by_role("region", name="Server head")
    expect(panel).to_contain_text("0:15 of 30")
    expect(panel).to_contain_text("when it was connected, directly")
    shot(page, "swarm-server")
    accessible(page)

    events = page.get_by_role("log", name="Events, the newest first")
    for victim in swarm.servers[1:]:
        victim.kill()
    expect(coverage).to_have_text([re.compile("0:15: 1"), re.compile("15:30: none")], timeout=LIMIT)
    expect(page.get_by_text("no server for 15:30", exact=True)).to_be_visible()
    expect(events).to_contain_text("blocks 15:30 of smollm2-135m have no server")
    expect(events).to_contain_text("spare left")
    shot(page, "swarm-gap")
    accessible(page)

    serve(swarm, smollm2, newcomer="15:30")
    expect(page.get_by_text("every block is served", exact=True)).to_be_visible(timeout=LIMIT)
    expect(events).to_contain_text("smollm2-135m is complete")
    expect(bar(page, "newcomer")).to_have_accessible_name(re.compile("ready"))
    shot(page, "swarm-healed")


def test_a_token_and_the_exact_command_add_a_machine(
    url: str, swarm: Swarm, open_page: OpenPage, shot: Shot, accessible: Accessible, tmp_path: Path
) -> None:
    page = open_page(url)
    page.get_by_role("button", name="Swarm", exact=True).click()
    page.get_by_role("button", name="Add a machine").click()
    dialog = page.get_by_role("dialog", name="Add a machine")
    expect(dialog).to_contain_text("start it again with python bootstrap.py up --share")  # all is on loopback here
    copy = dialog.get_by_role("button", name="Copy")
    expect(copy).to_be_disabled()
    dialog.get_by_role("button", name="Make token").click()
    expect(copy).to_be_enabled()
    commands = {}
    for system in ("Windows", "macOS", "Linux"):
        dialog.get_by_role("button", name=system).click()
        commands[system] = dialog.locator("pre").inner_text()
    assert commands["macOS"] == commands["Linux"]
    install, token, serve_line = commands["Linux"].splitlines()
    assert (install, serve_line) == ("python3 bootstrap.py install", f".venv/bin/swarm-server {MODEL}")
    assert commands["Windows"].splitlines() == [
        "py bootstrap.py install",
        token.replace("export SWARM_JOIN=", "$env:SWARM_JOIN = ").replace("'", '"'),
        f".venv\\Scripts\\swarm-server {MODEL}",
    ]
    shot(page, "add-machine")
    accessible(page)

    made = re.search(r"'(swarm1:[\w-]+)'", token)
    assert made is not None and made[1] != swarm.token
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWARM_HOME", str(tmp_path / "other machine"))
        with SwarmClient(made[1]) as client:
            assert [model.name for model in client.models()] == [MODEL]
