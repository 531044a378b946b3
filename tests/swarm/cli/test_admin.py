"""The commands that decide who is in the swarm, at a directory over real sockets."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from routing.client import DirectoryClient, DirectoryError
from routing.directory.directory import Directory
from routing.security import AdminKey, Identity, JoinToken, short_id
from swarm.cli.main import cli
from tests.routing.material import PATIENCE, running

Ask = Callable[..., str]


@pytest.fixture
def directory(swarm_home: Path) -> Iterator[Directory]:
    """Its state lies where `swarm-directory` keeps it."""
    with running(Directory("127.0.0.1:0", swarm_home / "directory", name="this-pc")) as directory:
        yield directory


@pytest.fixture
def ask(swarm_home: Path) -> Ask:
    """Runs `swarm ...`, which must succeed; what it prints."""

    def run(*arguments: str) -> str:
        result = invoke(*arguments)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def line_of(*arguments: str, code: int) -> str:
    """The one line with which a command fails."""
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    return result.output.splitlines()[-1]


def join(token: JoinToken | str, name: str = "peer", identity: Identity | None = None) -> DirectoryClient:
    parsed = JoinToken.parse(token) if isinstance(token, str) else token
    client = DirectoryClient(parsed, identity or Identity.create(), name, role="client", timeout=PATIENCE)
    client.start()
    return client


def refusal_of(token: str, identity: Identity | None = None) -> str:
    with pytest.raises(DirectoryError) as caught:
        join(token, identity=identity)
    return str(caught.value)


def entries(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)
    return found


def test_a_token_is_made_used_listed_and_revoked(directory: Directory, ask: Ask) -> None:
    made = json.loads(ask("token", "create", "--expires", "2h", "--uses", "2", "--json"))
    assert made["state"] == "good" and made["uses"] == 2 and made["expires"] - made["created"] == 7200
    laptop = Identity.create()
    join(made["token"], "laptop", laptop).close()
    shown = {entry["id"]: entry for entry in entries(ask("token", "list", "--json"))}
    assert shown[made["id"]]["used"] == 1 and len(shown) == 2
    secret = JoinToken.parse(made["token"]).secret.decode()
    assert secret not in ask("token", "list", "--json")
    table = ask("token", "list")
    assert re.search(rf"{made['id']} +good +peers +1 of 2", table) and "never" in table
    said = ask("token", "revoke", made["id"])
    assert said.startswith(f"revoked {made['id']}\n")
    assert f"laptop ({short_id(laptop.public)}) came with it and stay" in said
    assert "wrong, has expired or was revoked" in refusal_of(made["token"])
    join(made["token"], "laptop", laptop).close()
    assert re.search(rf"{made['id']} +revoked", ask("token", "list"))
    # The token itself will do for its id, and revoking twice is no error.
    assert ask("token", "revoke", made["token"]).startswith("revoked")


def test_a_token_for_one_machine_lets_in_one(directory: Directory, ask: Ask) -> None:
    token = ask("token", "create", "--uses", "1").strip()
    first = Identity.create()
    join(token, identity=first).close()
    assert "wrong, has expired or was revoked" in refusal_of(token)
    join(token, identity=first).close()
    assert "used up" in ask("token", "list")


def test_everybody_who_came_with_a_token_is_expelled_with_it(directory: Directory, ask: Ask) -> None:
    token = ask("token", "create").strip()
    one, two, other = join(token, "one"), join(token, "two"), join(directory.token, "other")
    said = ask("token", "revoke", token, "--and-expel")
    assert "one (" in said.splitlines()[1] and "two (" in said.splitlines()[1]
    other.wait_for(lambda view: len(view.members) == 1, PATIENCE)
    assert other.admits(other._identity.public) and not other.admits(one._identity.public)
    for client in (one, two, other):
        client.close()


def test_peers_are_listed_with_the_token_that_they_came_by(directory: Directory, ask: Ask) -> None:
    token = json.loads(ask("token", "create", "--json"))
    client = join(token["token"], "laptop")
    by_name = {entry["name"]: entry for entry in entries(ask("peers", "--json"))}
    assert by_name["laptop"]["role"] == "client" and by_name["laptop"]["token"] == token["id"]
    assert by_name["laptop"]["seen"] and by_name["laptop"]["enrolled"]
    assert by_name["this-pc"]["role"] == "directory"
    key = client._identity.public
    assert re.search(rf"laptop +{short_id(key)} +client +now +20\d\d-.* {token['id']}", ask("peers"))
    client.close()


def test_an_expelled_peer_is_named_and_stays_out(directory: Directory, ask: Ask) -> None:
    client, other = join(directory.token, "laptop"), join(directory.token, "other")
    said = ask("expel", "laptop")
    assert said.startswith(f"expelled laptop ({short_id(client._identity.public)})\n")
    token = Identity.from_secret(directory.token.secret).public
    assert f"revoke it with 'swarm token revoke {short_id(token)}'" in said
    other.wait_for(lambda view: client._identity.public in view.expelled, PATIENCE)
    assert "it was expelled from the swarm" in refusal_of(str(directory.token), client._identity)
    assert "laptop" not in ask("peers")
    assert line_of("expel", "laptop", code=1) == "Error: 'laptop' was expelled before"
    # By the beginning of its id.
    assert ask("expel", short_id(other._identity.public)[:5]).startswith("expelled other")
    client.close()
    other.close()


def test_who_is_meant_must_be_clear(directory: Directory, ask: Ask) -> None:
    twins = [join(directory.token, "twin"), join(directory.token, "twin")]
    line = line_of("expel", "twin", code=2)
    assert "several peers are 'twin'" in line
    assert all(short_id(twin._identity.public) in line for twin in twins)
    assert line_of("expel", "nobody", code=2) == "Error: no peer is 'nobody': see 'swarm peers'"
    assert "no join token is 'nothing'" in line_of("token", "revoke", "nothing", code=2)
    assert "'soon' is no duration: write for example" in line_of("token", "create", "--expires", "soon", code=2)
    for twin in twins:
        twin.close()


def test_a_second_directory_joins_with_a_token_made_for_it(directory: Directory, ask: Ask, tmp_path: Path) -> None:
    token = JoinToken.parse(ask("token", "create", "--directory"))
    with running(Directory("127.0.0.1:0", tmp_path / "second", join=token, name="other-pc")) as second:
        directories = [entry for entry in entries(ask("peers", "--json")) if entry["role"] == "directory"]
        assert {entry["name"] for entry in directories} == {"this-pc", "other-pc"}
        named = JoinToken.parse(ask("token", "create")).directories
        assert {site.key for site in named} == {directory.token.directory, second.token.directory}
        key = str(tmp_path / "second")
        assert short_id(second.token.directory) in ask("peers", "--admin-key", key)


def test_the_admin_key_decides_which_directory_is_meant(
    directory: Directory, ask: Ask, swarm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "admin.key"
    copy.write_bytes((swarm_home / "directory" / "admin.key").read_bytes())
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "elsewhere"))
    assert "no directory keeps its state under" in line_of("token", "create", code=2)
    assert ask("token", "create", "--admin-key", str(copy)).startswith("swarm1:")
    monkeypatch.setenv("SWARM_ADMIN_KEY", str(copy))
    assert "this-pc" in ask("peers")
    copy.write_text(str(directory.token))
    assert "holds no admin key: it is the file admin.key" in line_of("peers", code=1)


def test_the_directory_of_swarm_up_is_found_where_it_was_started_last(swarm_home: Path, ask: Ask) -> None:
    with running(Directory("127.0.0.1:0", swarm_home / "directory", name="old")):
        pass
    with running(Directory("127.0.0.1:0", swarm_home / "up", name="new")):
        assert "new" in ask("peers")
    assert "is that directory running?" in line_of("peers", code=1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits; the profile folder is private")
def test_only_the_owner_can_read_the_admin_key(directory: Directory, swarm_home: Path) -> None:
    path = swarm_home / "directory" / "admin.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert AdminKey.load(path).secret.decode() not in repr(AdminKey.load(path))
