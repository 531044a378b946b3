"""Architectures: which of llama.cpp's architectures can be cut into spans, and what to mind.

llama.cpp numbers the blocks of a file from 0, so a block whose work depends on its number must find it in the file
after the cut. This was read out of llama.cpp's `src/models/*.cpp`; an architecture that is not listed was not looked
at, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.stage import BackendError


@dataclass(frozen=True, slots=True)
class Architecture:
    """One of llama.cpp's architectures, and what to mind where its models are cut.

    Attributes:
        marks: the graph marks the input of every block, so that it can be asked for without a callback.
        pattern: every so many blocks one attends to everything, the others to a window; a list in the file says so.
        scaled: the graph multiplies whatever it is given by the square root of the width, hidden states too.
        headed: a file of it must hold a head, used or not.
        by_count: numbers of blocks at which llama.cpp takes a model for another size and computes otherwise.
    """

    marks: bool = False
    pattern: int = 0
    scaled: bool = False
    headed: bool = False
    by_count: frozenset[int] = frozenset()


KNOWN: dict[str, Architecture] = {
    "gemma2": Architecture(pattern=2, scaled=True, by_count=frozenset({46})),
    "gemma3": Architecture(pattern=6, by_count=frozenset({62})),
    "granite": Architecture(),
    "llama": Architecture(marks=True),
    "olmo2": Architecture(pattern=4, headed=True),
    "phi3": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(marks=True),
    "qwen3moe": Architecture(marks=True),
}


def architecture(name: str, blocks: int) -> Architecture:
    """Raises: BackendError: a model of this architecture, and so many blocks, cannot be cut."""
    known = KNOWN.get(name)
    if known is None:
        raise BackendError(
            f"this backend does not cut models of llama.cpp's architecture {name}, because it is not known what "
            f"their blocks do by their number; it knows {', '.join(KNOWN)}. Take --backend transformers"
        )
    if blocks in known.by_count:
        raise BackendError(
            f"llama.cpp computes a {name} of {blocks} blocks in a way of its own, which a part of it would not get; "
            "take --backend transformers"
        )
    return known
