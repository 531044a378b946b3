"""What a chat in the terminal decides without a swarm: when text is complete, which form a family has, its files."""

from __future__ import annotations

import io
import itertools

import jinja2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from swarm import BadRequest
from swarm.chat_templates import FAMILIES, PLAIN, ChatTemplate, detect_template
from swarm.cli.chat import conversation
from swarm.cli.chat.conversation import ChatTurn, Conversation
from swarm.cli.chat.markdown import MarkdownWriter, settled_length, until_stop

MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
# As the model cards write them.
WRITTEN = {
    "ChatML": "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello."
    "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "Llama 3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "Gemma": "<s><start_of_turn>user\nBe short.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "Mistral": "<s>[INST] Be short.\n\nHi [/INST] Hello.</s>[INST] Bye [/INST]",
    "Zephyr": "<|system|>\nBe short.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\nBye</s>\n"
    "<|assistant|>\n",
    "plain text": "System: Be short.\n\nUser: Hi\n\nAssistant: Hello.\n\nUser: Bye\n\nAssistant:",
}


@pytest.mark.parametrize("template", [*FAMILIES, PLAIN], ids=lambda template: template.family)
def test_each_family_is_known_by_its_vocabulary_and_asked_in_its_form(template: ChatTemplate) -> None:
    assert detect_template({"the", template.sign} if template.sign else {"the"}) is template
    text = jinja2.Environment(trim_blocks=True).from_string(template.text)
    written = text.render(messages=MESSAGES, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    assert written == WRITTEN[template.family]


@given(pieces=st.lists(st.text("a\n`~# ", max_size=6)), more=st.text("a\n`~# "))
def test_what_is_printed_for_good_is_never_changed_by_what_follows(pieces: list[str], more: str) -> None:
    text = "".join(pieces)
    settled = settled_length(text)
    assert settled_length(text + more) >= settled
    assert settled == 0 or text[:settled].endswith("\n")


def test_a_block_of_code_is_not_torn() -> None:
    assert settled_length("One.\n\nTwo") == 6
    assert settled_length("One.\n\n```\na = 1\n\nb = 2\n") == 6
    assert settled_length("One.\n\n```\na = 1\n\nb = 2\n```\n\n") == 28


@given(
    text=st.text("ab\nU:", max_size=40),
    cuts=st.lists(st.integers(0, 40)),
    stop=st.sampled_from(["", "a", "b\nU:", "aab"]),
)
def test_an_answer_ends_before_its_stop_text_however_it_is_cut(text: str, cuts: list[int], stop: str) -> None:
    marks = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(marks)]
    assert "".join(until_stop(pieces, stop)) == (text.split(stop)[0] if stop else text)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_markdown_and_a_pipe_gets_text(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=40)
    with MarkdownWriter(console) as writer:
        for piece in ("# Ti", "tle\n\nsome **bo", "ld** text\n\n```\nx = 1", "\n```"):
            writer.write(piece)
    written = console.file.getvalue()  # type: ignore[attr-defined]
    if terminal:
        assert "Title" in written and "**" not in written.rsplit("\x1b[2K", 1)[-1]
    else:
        assert written == "# Title\n\nsome **bold** text\n\n```\nx = 1\n```\n"


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
