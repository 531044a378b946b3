"""Validation of work: whether a message asks for what its session and the model can have, and what comes of it."""

from __future__ import annotations

from backends import ModelInfo
from backends.stage import Array
from routing import wire
from swarm.server.scheduler import Work
from swarm.server.sessions import ServerSession


def validate(session: ServerSession, message: wire.Forward, array: Array | None, model: ModelInfo) -> str:
    """Why this cannot be computed here; empty: it can."""
    head = session.span.start == 0
    if array is None or array.ndim != (1 if head else 2) or not len(array):
        return "no token ids" if head else "no hidden states"
    if head and array.dtype.kind != "i":
        return f"token ids of {array.dtype}"
    if head and not (array.min() >= 0 and array.max() < model.vocab_size):
        return f"a token id outside the vocabulary of {model.vocab_size}"
    if not head and array.dtype.kind not in "fV":  # bfloat16 is no kind that NumPy knows
        return f"hidden states of {array.dtype}"
    if not head and array.shape[1] != model.hidden_size:
        return f"hidden states {array.shape[1]} wide, not {model.hidden_size}"
    if message.position + len(array) > session.max_length:
        return f"{message.position + len(array)} tokens, more than the session's {session.max_length}"
    return ""


def work_of(
    session: ServerSession, message: wire.Forward, position: int, inputs: Array, sender: bytes, size: int
) -> Work:
    """The work that a message asks for.

    Args:
        position, inputs: what of it has not been taken in yet.
        sender: the route of the hop that is owed credit for it; empty: none is.
        size: bytes of the message.
    """
    return Work(
        session.id,
        session.epoch,
        position,
        inputs,
        session.span,
        min(message.outputs, len(inputs)),
        "logits" if session.generation else message.output,
        message.starts,
        message.last,
        sender,
        size,
    )
