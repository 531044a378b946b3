"""Conversations of a chat in the terminal, and their files."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm import BadRequest
from swarm.cli.chat import conversation
from swarm.cli.chat.conversation import ChatTurn, Conversation


@given(
    said=st.lists(st.builds(ChatTurn, st.sampled_from(["user", "assistant"]), st.text())),
    system=st.text(),
    name=st.from_regex(r"[a-z0-9][a-z0-9 .-]{0,20}[a-z0-9]", fullmatch=True),
)
def test_a_conversation_comes_back_as_it_was(
    said: list[ChatTurn], system: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWARM_HOME", str(tmp_path_factory.mktemp("home")))
        kept = Conversation("model", system, said)
        assert conversation.save(kept, name).is_file()
        assert conversation.load(name) == kept
        assert conversation.saved() == [name]


@pytest.mark.parametrize("name", ["", "../up/join", "a/b", "a\\b", "C:x", ".hidden", "nul\0", "ends.", "x" * 65])
def test_a_name_is_no_path(name: str, swarm_home: object) -> None:
    for act in (conversation.load, lambda name: conversation.save(Conversation(), name)):
        with pytest.raises(BadRequest, match="is no name for a chat"):
            act(name)  # type: ignore[operator]


def test_what_cannot_be_loaded_is_said(swarm_home: object) -> None:
    with pytest.raises(BadRequest, match="no chat was saved as 'x'; there are: none"):
        conversation.load("x")
    path = conversation.save(Conversation(messages=[]), "broken")
    path.write_bytes(msgspec.json.encode({"messages": [1]}))
    with pytest.raises(BadRequest, match="cannot be read"):
        conversation.load("broken")
