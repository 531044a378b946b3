from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.security import TOKEN_PREFIX, Identity, JoinToken, SecurityError

NOW = 1_000_000.0
DIRECTORY = Identity.create()
SECRET = Identity.create().secret

tokens = st.builds(
    JoinToken,
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=4).map(tuple),
    st.just(DIRECTORY.public),
    st.just(SECRET),
    st.none() | st.floats(NOW + 1, 1e12),
)


@given(tokens, st.sampled_from(["", " ", "\n", "\r\n"]))
def test_a_join_token_survives_being_copied(token: JoinToken, space: str) -> None:
    assert JoinToken.parse(f"{space}{token}{space}") == token


@given(tokens, st.data())
def test_a_damaged_join_token_is_never_taken_for_another(token: JoinToken, data: st.DataObject) -> None:
    text = str(token)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = data.draw(
        st.sampled_from([text[:at], text[:at] + text[at + 1 :]])
        | st.characters(exclude_categories=["Cs"]).map(lambda other: text[:at] + other + text[at + 1 :])
    )
    try:
        assert JoinToken.parse(damaged) == token  # only bits that mean nothing were changed
    except SecurityError as error:
        assert "join token" in str(error) and "\n" not in str(error)


@given(st.text(), st.booleans())
def test_what_is_no_join_token_is_called_so(text: str, prefix: bool) -> None:
    with pytest.raises(SecurityError, match="join token"):
        JoinToken.parse(TOKEN_PREFIX + text if prefix else text)


def test_an_expired_join_token_says_when_it_expired() -> None:
    token = JoinToken(("localhost:1",), DIRECTORY.public, SECRET, expires=NOW)
    assert JoinToken.parse(str(token)) == token
    assert token.expiry(NOW - 1) == ""
    assert re.fullmatch(r"the join token expired on 1970-01-1\d .*: ask for a new one", token.expiry(NOW))


def test_secrets_are_not_shown() -> None:
    shown = repr(DIRECTORY) + repr(JoinToken(("localhost:1",), DIRECTORY.public, SECRET))
    assert DIRECTORY.secret.decode() not in shown and repr(SECRET)[2:-1] not in shown


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "peer.key"
    first = Identity.load(path)
    assert Identity.load(path) == first
    assert Identity.from_secret(first.secret) == first
    assert Identity.load(tmp_path / "other.key") != first


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits; the profile folder is private")
def test_only_the_owner_can_read_an_identity(tmp_path: Path) -> None:
    Identity.load(tmp_path / "peer.key")
    assert (tmp_path / "peer.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff" * 40, b"short"])
def test_a_damaged_key_file_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peer.key"
    path.write_bytes(content)
    with pytest.raises(SecurityError, match="holds no key"):
        Identity.load(path)
    assert path.read_bytes() == content
