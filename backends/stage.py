"""Stage interface: what lies between the server and whatever computes a span of blocks.

Arrays cross it as NumPy (`ml_dtypes.bfloat16` for bfloat16), so a server needs no tensor library of its own and a
backend may be built on any. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]
Output = Literal["logits", "hidden"]


class BackendError(Exception):
    """A model, span or option that this backend cannot serve. The text is for the user and says what to do."""


class Span(NamedTuple):
    """`start:end`, a half-open range of blocks counted from 0."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Model info: what is known of a model without reading its weights.

    Attributes:
        architecture: the class that the configuration names, e.g. `LlamaForCausalLM`.
        blocks: number of transformer blocks, L.
        hidden_size: width of the hidden states that are handed from span to span.
        vocab_size: number of logits of a row.
        context_length: the longest sequence that the model was made for, in tokens; 0 where it is unbounded.
        dtype: the dtype that the weights are stored in, e.g. `bfloat16`.
        block_bytes: size of each block's tensors, in bytes, length L: as stored, or as options would have them held.
        edge_bytes: the same of the embedding (head) and of norm plus LM head (tail).
        kv_bytes_per_token: bytes that one token takes in one block's KV cache, at the stored dtype or as options say.
    """

    architecture: str
    blocks: int
    hidden_size: int
    vocab_size: int
    context_length: int
    dtype: str
    block_bytes: tuple[int, ...]
    edge_bytes: tuple[int, int]
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Options:
    """Options of loading a span.

    Attributes:
        kv_dtype: what keys and values are kept as; `auto`: as the backend has them otherwise.
        kv_tokens: room for so many tokens of KV cache, for a backend that sets it aside when it loads.
        cache: folder for files that a backend makes of a model once; None: they are made anew each time.
        progress: called with bytes read so far, and in all.
    """

    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    threads: int | None = None
    kv_dtype: str = "auto"
    kv_tokens: int | None = None
    cache: Path | None = None
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """The part of a batch that belongs to one session.

    Attributes:
        session: id of the session; its KV cache is made at position 0.
        position: position in the sequence of the row's first token; equals the length of the session's KV cache.
        length: number of tokens, at least 1.
        outputs: at the tail, for how many of the row's last tokens an output is wanted.
    """

    session: str
    position: int
    length: int
    outputs: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows of one or more sessions: no padding, one after the other.

    Attributes:
        inputs: `[tokens]` int32 token ids when `span.start` is 0, else `[tokens, hidden]` hidden states.
        rows: in the order in which they are packed; no session twice.
        span: the blocks to run; lies inside the stage's own span.
        output: what the tail returns for the wanted rows; ignored unless `span.end` is the last block.
    """

    inputs: Array
    rows: Sequence[Row]
    span: Span
    output: Output = "logits"


@dataclass(frozen=True, slots=True)
class Memory:
    """The bytes that a stage takes of its device, and those that are left.

    Attributes:
        weights: bytes of the span's weights.
        kv: bytes of the sessions' KV cache.
        free: bytes that the device has left for more KV cache; None: this device does not say.
    """

    weights: int
    kv: int
    free: int | None


class Stage(Protocol):
    """A loaded span. Used by one thread at a time."""

    model: ModelInfo
    span: Span
    device: str
    dtype: str  # of the hidden states that it returns
    precision: str  # of the weights where `dtype` does not say it: `q4_0`; empty: as `dtype`, or as was asked for
    batched: bool  # False: forward() takes one row at a time
    kv_bytes_per_token: int  # for the whole span
    kv_tokens: int  # the room of its KV cache; 0: it grows with what is computed

    def forward(self, batch: Batch) -> Array:
        """Run `batch.span` over the packed rows and extend each session's KV cache.

        Returns:
            `[tokens, hidden]` hidden states when `batch.span` ends before the last block; otherwise, for the last
            `outputs` tokens of each row in order, `[sum(outputs), vocab]` float32 logits or `[sum(outputs), hidden]`
            hidden states after the final norm.

        Raises:
            BackendError: a row does not start where its session's KV cache ends.
            MemoryError: the device has no room; no session has changed.
        """
        ...

    def truncate(self, session: str, length: int) -> None:
        """Forget the session's tokens from position `length` on.

        Raises:
            BackendError: this model's state cannot go back (a recurrent layer); free the session and replay it.
        """
        ...

    def free(self, session: str) -> None:
        """Drop the session's KV cache; unknown sessions are ignored."""
        ...

    def memory(self) -> Memory: ...


class Backend(Protocol):
    """Backend: what an entry point of the group `swarm.backends` names; a module or an object with these functions."""

    def missing(self) -> str | None:
        """What has to be installed first, and how; None: nothing. Quick: it imports no engine."""
        ...

    def describe(self, model: Path, options: Options | None = None) -> ModelInfo:
        """Read what is known of the model folder without its weights.

        Args:
            options: sizes are what a span loaded with them takes; None: what is stored.

        Raises:
            BackendError: no model there, or not one that this backend can run as the options ask.
        """
        ...

    def refusal(self, model: Path, options: Options) -> str | None:
        """Why `--backend auto` should not take this backend for the model; None: it computes as the options ask."""
        ...

    def free_memory(self, options: Options) -> int | None:
        """The free bytes of the device that a span loaded with these options would compute on.

        `auto` means what it means to `load`, so only the backend can answer. None: that device does not say; main
        memory is no answer for a card.

        Raises:
            BackendError: this machine, or the engine as it is installed, has no such device.
        """
        ...

    def load(self, model: Path, span: Span, options: Options) -> Stage:
        """Load only the span's tensors.

        Raises:
            BackendError: the folder, the span or an option cannot be served; the text says what to do.
        """
        ...
