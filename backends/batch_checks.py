"""Batch checks: whether a stage can run a batch; the checks that do not depend on what computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from backends.stage import BackendError, Batch, ModelInfo, Row, Span


class KVSession(Protocol):
    """KV session: what a stage knows of a session; its tokens, and the blocks that it runs."""

    @property
    def length(self) -> int: ...

    @property
    def span(self) -> Span: ...


def require(batch: Batch, own: Span, model: ModelInfo, known: Callable[[str], KVSession | None]) -> None:
    """
    Args:
        own: the blocks that the stage holds.
        known: the session of a name; None: there is none yet.

    Raises:
        BackendError: the batch is not one that the stage can run.
    """
    span = Span(*batch.span)
    if not own.start <= span.start < span.end <= own.end:
        raise BackendError(f"blocks {span} are not inside blocks {own}, which this stage holds")
    if not batch.rows:
        raise BackendError("a batch needs at least one row")
    if len({row.session for row in batch.rows}) != len(batch.rows):
        raise BackendError("a batch holds a session twice")
    tokens = 0
    for row in batch.rows:
        _require_row(row, span, model, known(row.session))
        tokens += row.length
    expected = (tokens,) if span.start == 0 else (tokens, model.hidden_size)
    if batch.inputs.shape != expected:
        raise BackendError(f"inputs of shape {batch.inputs.shape} for blocks {span}, {expected} expected")
    if span.start == 0 and not 0 <= batch.inputs.min() <= batch.inputs.max() < model.vocab_size:
        raise BackendError(f"a token id is outside the vocabulary of {model.vocab_size}")


def _require_row(row: Row, span: Span, model: ModelInfo, session: KVSession | None) -> None:
    length = session.length if session else 0
    if row.length < 1 or not 0 <= row.outputs <= row.length:
        raise BackendError(f"session {row.session}: a row of {row.length} tokens with {row.outputs} outputs")
    if row.position != length:
        raise BackendError(f"session {row.session} has {length} tokens here, so it cannot go on at {row.position}")
    if session and session.span != span:
        raise BackendError(f"session {row.session} runs blocks {session.span}; free it before it runs {span}")
    limit = model.context_length
    if limit and row.position + row.length > limit:
        raise BackendError(f"session {row.session} would outgrow the model's context of {limit} tokens")
