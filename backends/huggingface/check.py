"""Check of a span before it is served: whether its blocks give the same in our hands as in the family's own.

One block of each kind in the span runs random input in one piece, without any cache, as transformers runs it, and then
in pieces, beside another session where the stage is batched. A family whose results differ is run in a simpler way, and
refused if that differs too. It takes a few forwards of a few tokens through single blocks.
"""

from __future__ import annotations

from typing import Any

import torch

from backends.huggingface import attention
from backends.huggingface.stage import TransformersStage
from backends.stage import BackendError, Row, Span
from backends.torch_net.net import first_line

# Two sequences, and the pieces in which they run: (tokens of the first, tokens of the second) for each forward.
_LENGTHS = (9, 5)
_BATCHES = ((5, 0), (1, 4), (3, 1))
_KINDS = 4


def choose_mode(stage: TransformersStage) -> None:
    """Choose how the stage runs: whole batches if that is right for this family, else one row at a time.

    Raises:
        BackendError: neither gives what the family's own forward gives.
    """
    own = stage.net.attention
    blocks = _one_of_each_kind(stage)
    with torch.inference_mode():
        wanted = [_whole(stage, block) for block in blocks]
        if stage.batched:
            stage.net.use_attention(attention.NAME)
            for stage.gather in (False, True):
                if _difference(stage, blocks, wanted) is None:
                    return
            stage.net.use_attention(own)
            stage.batched = stage.gather = False
        reason = _difference(stage, blocks, wanted)
        if reason is not None and not stage.net.attention_only:
            stage.stepwise = True
            if _difference(stage, blocks, wanted) is None:
                return
    if reason is not None:
        raise BackendError(f"{stage.net.architecture} cannot be served in spans: {reason}")


def _one_of_each_kind(stage: TransformersStage) -> list[int]:
    types = getattr(stage.net.config, "layer_types", None) or ()
    kinds: dict[Any, int] = {}
    # Block 0 comes last: its input is not known apart from the embedding, which makes it the weakest test.
    for block in sorted(range(stage.span.start, stage.span.end), key=lambda index: index == 0):
        kind = (type(stage.net.blocks[block]), types[block] if block < len(types) else None)
        kinds.setdefault(kind, block)
    return list(kinds.values())[:_KINDS]


def _inputs(stage: TransformersStage, block: int, which: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(which)
    length = _LENGTHS[which]
    if block == 0:
        ids = torch.randint(0, stage.model.vocab_size, (length,), generator=generator)
        return ids.to(stage.torch_device)
    # Small, so that what the block adds stands out; its norms make up for it.
    hidden = 0.1 * torch.randn(length, stage.model.hidden_size, generator=generator)
    return hidden.to(stage.torch_device, stage.torch_dtype)


def _whole(stage: TransformersStage, block: int) -> list[torch.Tensor]:
    """What the block makes of each sequence in one piece and without a cache."""
    view = stage.view(Span(block, block + 1), False)
    out = []
    for which, length in enumerate(_LENGTHS):
        positions = torch.arange(length, device=stage.torch_device)
        try:
            out.append(view.hidden(_inputs(stage, block, which), positions, None))
        except Exception as error:
            raise BackendError(
                f"{stage.net.architecture} cannot be served in spans: block {block} fails ({first_line(error)})"
            ) from error
    return out


def _difference(stage: TransformersStage, blocks: list[int], wanted: list[list[torch.Tensor]]) -> str | None:
    """Why the blocks do not work in pieces, or None if they do."""
    for block, whole in zip(blocks, wanted, strict=True):
        try:
            pieces = _in_pieces(stage, block)
        except BackendError as error:
            raise BackendError(f"{stage.net.architecture} cannot be served: {error}") from error
        except Exception as error:  # noqa: BLE001 - whatever a family raises, it means the same here
            return f"block {block} fails on a part of a sequence ({first_line(error)})"
        for which, (a, b) in enumerate(zip(whole, pieces, strict=True)):
            if not _close(stage, _inputs(stage, block, which), a, b):
                return f"block {block} gives other results for a sequence in parts than for all of it"
    return None


def _in_pieces(stage: TransformersStage, block: int) -> list[torch.Tensor]:
    span = Span(block, block + 1)
    view = stage.view(span, False)
    sessions = [stage.new_session(span) for _ in _LENGTHS]
    out: list[list[torch.Tensor]] = [[] for _ in _LENGTHS]
    for lengths in _BATCHES:
        present = [which for which, length in enumerate(lengths) if length]
        for group in [present] if stage.batched else [[which] for which in present]:
            rows = [Row(str(which), sessions[which].length, lengths[which]) for which in group]
            x = torch.cat(
                [
                    _inputs(stage, block, which).narrow(0, row.position, row.length)
                    for which, row in zip(group, rows, strict=True)
                ]
            )
            with attention.Running(stage.cache(rows, [sessions[which] for which in group])) as cache:
                pieces = stage.pieces(x, stage.positions(rows), rows)
                hidden = torch.cat([view.hidden(piece, at, cache) for _, piece, at in pieces])
            at_token = 0
            for which, row in zip(group, rows, strict=True):
                out[which].append(hidden[at_token : at_token + row.length])
                sessions[which].commit(row.length)
                at_token += row.length
    return [torch.cat(pieces) for pieces in out]


def _close(stage: TransformersStage, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two results agree, measured against what the block adds to its input, and what the dtype can tell."""
    a, b = a.float(), b.float()
    if not bool(torch.isfinite(a).all()):
        return True  # overflow on random input says nothing
    added = (a - x.float() if x.is_floating_point() else a).norm(dim=-1)
    rounding = 8 * torch.finfo(stage.torch_dtype).eps * a.norm(dim=-1)
    agree = (a - b).norm(dim=-1) <= (1e-3 if stage.exact else 0.1) * added + rounding
    # In 16 bits a token may be sent to another expert by rounding alone, and int8 picks its outliers from the whole
    # batch; a wrong position would show in most tokens.
    return bool(agree.all() if stage.exact else agree.float().mean() > 0.5)
