"""Stop strings: the cut is where the text says, whatever the pieces, and nothing of a stop string gets out."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from openai_api.generation.stops import StopScanner

letters = st.text("ab\né", max_size=40)
stop_strings = st.lists(st.text("ab\né", min_size=1, max_size=5), max_size=4)


def cut(text: str, stops: list[str]) -> str:
    """What a reader who sees one character after the other lets stand."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@st.composite
def pieces_of_text(draw: st.DrawFn) -> list[str]:
    text = draw(letters)
    at = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]


@given(pieces_of_text(), stop_strings)
@example(["ab", "c"], ["abc", "b"])
@example(["a", "a", "b"], ["ab"])
@example(["\n", "\n"], ["\n\n"])
def test_the_pieces_joined_are_the_text_up_to_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    scanner = StopScanner(stops)
    shown = [scanner.push(piece) for piece in pieces]
    shown.append(scanner.flush())
    text = "".join(pieces)
    assert "".join(shown) == cut(text, stops)
    assert (scanner.found is not None) == any(stop in text for stop in stops)


@given(pieces_of_text(), stop_strings)
def test_no_part_of_a_stop_string_is_ever_shown(pieces: list[str], stops: list[str]) -> None:
    """At any time, whatever follows: what was shown is a beginning of what may be shown in the end."""
    scanner = StopScanner(stops)
    shown = read = ""
    for piece in pieces:
        read += piece
        shown += scanner.push(piece)
        for future in ["", *stops, *(stop[n:] for stop in stops for n in range(len(stop)))]:
            assert cut(read + future, stops).startswith(shown)
    assert not any(stop in shown for stop in stops)


@given(letters)
def test_without_stop_strings_nothing_is_held_back(text: str) -> None:
    scanner = StopScanner(())
    assert scanner.push(text) == text
    assert scanner.flush() == ""
