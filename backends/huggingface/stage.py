"""Transformers stage: a loaded span of blocks, run by the family's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from backends import batch_checks
from backends.huggingface import attention
from backends.huggingface.cache import NotPackedError, PackedCache, SingleCache, TorchKVSession
from backends.stage import Array, BackendError, Batch, Memory, ModelInfo, Row, Span
from backends.torch_net import device, quantize
from backends.torch_net.net import Anatomy, Net
from backends.torch_net.subspan import SubspanView

_NO_ROOM = "{} has no room for {} more tokens; end some sessions or shorten the prompt"


class TransformersStage:
    """Transformers stage: runs a span; see `backends.stage.Stage`.

    `batched` is False for families whose attention cannot be replaced or which keep a running state.
    """

    precision, kv_tokens = "", 0

    def __init__(
        self, net: Net, anatomy: Anatomy, info: ModelInfo, span: Span, target: torch.device, dtype: torch.dtype
    ) -> None:
        self.net, self.anatomy, self.model, self.span = net, anatomy, info, span
        self.torch_device, self.torch_dtype = target, dtype
        self.device, self.dtype = str(target), device.dtype_name(dtype)
        self.batched = net.attention_only and net.attention_is_open
        self.gather = self.stepwise = False
        self.exact = False  # whether results of the same tokens may differ by no more than float32's rounding
        self.mapped = 0  # bytes of weights that lie in mapped files
        self.windowed = net.windowed_layers()
        self.sdpa = bool(getattr(net.model, "_supports_sdpa", False))
        self.kv_bytes_per_token = sum(anatomy.kv_elements[span.start : span.end]) * dtype.itemsize
        self.sessions: dict[str, TorchKVSession] = {}
        self._views: dict[tuple[Span, bool], SubspanView] = {}
        self._weights = _bytes_of(net)

    def view(self, span: Span, tail: bool) -> SubspanView:
        """What runs this sub-range; with `tail`, through the final norm."""
        if (span, tail) not in self._views:
            self._views[span, tail] = SubspanView(self.net, self.anatomy, span, tail)
        return self._views[span, tail]

    def forward(self, batch: Batch) -> Array:
        """See `backends.stage.Stage.forward`; batches of several rows need `batched`."""
        span = Span(*batch.span)
        if not self.batched and len(batch.rows) > 1:
            raise BackendError(f"{self.net.architecture} runs one session at a time")
        batch_checks.require(batch, self.span, self.model, self.sessions.get)
        sessions = [self._session(row, span) for row in batch.rows]
        is_tail = span.end == self.anatomy.count
        try:
            with torch.inference_mode():
                for session in sessions:
                    session.prepare()
                out = self._run(batch, span, sessions, is_tail)
                array = device.to_numpy(out)
        except BaseException as error:
            for session in sessions:
                session.revert()
            if device.out_of_memory(error):
                tokens = sum(row.length for row in batch.rows)
                raise MemoryError(_NO_ROOM.format(self.device, tokens)) from error
            if isinstance(error, NotPackedError):
                raise BackendError(
                    f"{self.net.architecture} cannot run batches of several sessions: {error}"
                ) from error
            raise
        for row, session in zip(batch.rows, sessions, strict=True):
            session.commit(row.length)
            self.sessions[row.session] = session
        return array

    def _run(self, batch: Batch, span: Span, sessions: Sequence[TorchKVSession], is_tail: bool) -> torch.Tensor:
        x, positions, view = self._inputs(batch, span), self.positions(batch.rows), self.view(span, is_tail)
        out: list[torch.Tensor] = []
        with attention.Running(self.cache(batch.rows, sessions)) as cache:
            for start, piece, at in self.pieces(x, positions, batch.rows):
                if not is_tail:
                    out.append(view.hidden(piece, at, cache))
                    continue
                wanted = _wanted(batch.rows, start, len(piece)).to(self.torch_device, non_blocking=True)
                if batch.output == "logits" and len(wanted):
                    out.append(view.logits(piece, at, cache, wanted).float())
                else:
                    final = view.final(piece, at, cache)
                    out += [final[wanted]] if batch.output == "hidden" else []
        if not out:
            return torch.empty(0, self.model.vocab_size)
        return out[0] if len(out) == 1 else torch.cat(out)

    def pieces(
        self, x: torch.Tensor, positions: torch.Tensor, rows: Sequence[Row]
    ) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        """What of a batch runs at once, as (index of its first token, input, positions).

        That is all of it, except where a family can go on with a sequence only token by token.
        """
        if not self.stepwise or rows[0].position == 0:
            return [(0, x, positions)]
        return [(i, x[i : i + 1], positions[i : i + 1]) for i in range(len(x))]

    def cache(self, rows: Sequence[Row], sessions: Sequence[TorchKVSession]) -> Any:
        """What the family's forward is given as its KV cache."""
        if self.batched:
            lengths = [(session, row.length) for row, session in zip(rows, sessions, strict=True)]
            return PackedCache(lengths, self.gather, self.sdpa, self.windowed)
        return sessions[0].cache

    def new_session(self, span: Span) -> TorchKVSession:
        """A session without tokens that runs this sub-range."""
        if self.batched:
            return TorchKVSession(span)
        layers = self.net.cache_layers()
        # Some families have more than one attention in a block, and number them on.
        each = max(1, len(layers) // self.anatomy.count)
        inside = range(span.start * each, span.end * each)
        return TorchKVSession(span, lambda session: SingleCache(session, layers, inside))

    def _session(self, row: Row, span: Span) -> TorchKVSession:
        session = self.sessions.get(row.session)
        if session is None:
            return self.new_session(span)
        return session

    def _inputs(self, batch: Batch, span: Span) -> torch.Tensor:
        dtype = torch.int64 if span.start == 0 else self.torch_dtype
        return device.to_torch(batch.inputs, self.torch_device, dtype)

    def positions(self, rows: Sequence[Row]) -> torch.Tensor:
        """Position of every packed token in its sequence."""
        if len(rows) == 1:
            start = rows[0].position
            return torch.arange(start, start + rows[0].length, device=self.torch_device)
        positions = np.concatenate([np.arange(row.position, row.position + row.length) for row in rows])
        return torch.from_numpy(positions).to(self.torch_device, non_blocking=True)

    def truncate(self, session: str, length: int) -> None:
        """See `backends.stage.Stage.truncate`; a session that is no longer than `length` stays as it is."""
        if length < 0:
            raise BackendError(f"session {session} cannot be truncated to {length} tokens")
        known = self.sessions.get(session)
        if known is None or length >= known.length:
            return
        if length == 0:
            self.sessions[session] = self.new_session(known.span)
        else:
            known.truncate(length)

    def free(self, session: str) -> None:
        """See `backends.stage.Stage.free`."""
        self.sessions.pop(session, None)

    def memory(self) -> Memory:
        """See `backends.stage.Stage.memory`."""
        kv = sum(session.nbytes() for session in self.sessions.values())
        # The system counts mapped weights as memory that it could have back, which it must not.
        return Memory(self._weights, kv, max(0, device.free_memory(self.torch_device) - self.mapped))


def _bytes_of(net: Net) -> int:
    tensors = [*net.model.parameters(), *net.model.buffers()]
    own: dict[int, int] = {t.data_ptr(): t.nbytes for t in tensors if not t.is_meta and t.numel()}
    return sum(own.values()) + quantize.nbytes(net.model)


def _wanted(rows: Sequence[Row], start: int, length: int) -> torch.Tensor:
    """Indexes, from `start`, of the packed tokens in `start:start + length` whose outputs are wanted."""
    ends = np.cumsum([row.length for row in rows])
    indexes = np.concatenate([np.arange(end - row.outputs, end) for row, end in zip(rows, ends, strict=True)])
    return torch.from_numpy(indexes[(indexes >= start) & (indexes < start + length)] - start)
