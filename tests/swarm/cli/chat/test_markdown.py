"""Markdown in a terminal: what is complete is printed for good, and never changed."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from swarm.cli.chat.markdown import MarkdownWriter, settled_length, until_stop


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
