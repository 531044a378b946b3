"""A small causal model in NumPy that implements the backend interface, for tests of everything around the backend.

Block b maps the input x_t to tanh(W_b x_t + mean of x_0..x_t): position t depends on all before it, so a lost, doubled
or misplaced token changes everything that follows. Sums are made token by token, so results do not depend on how the
sequence is cut into batches.
"""

from __future__ import annotations

import numpy as np

from backends import BackendError, Batch, Memory, ModelInfo, Row, Span
from backends.stage import Array

BLOCKS, WIDTH, VOCAB = 6, 8, 61
_random = np.random.default_rng(7)
EMBEDDING = _random.normal(size=(VOCAB, WIDTH)).astype(np.float32)
WEIGHTS = _random.normal(size=(BLOCKS, WIDTH, WIDTH)).astype(np.float32)
HEAD = (4 * _random.normal(size=(WIDTH, VOCAB))).astype(np.float32)


class ToyStage:
    device, dtype, kv_bytes_per_token = "cpu", "float32", 4
    precision, kv_tokens = "", 0

    def __init__(self, span: Span, batched: bool = True, context_length: int = 0) -> None:
        self.model = ModelInfo("Toy", BLOCKS, WIDTH, VOCAB, context_length, "float32", (1,) * BLOCKS, (1, 1), 1)
        self.span = span
        self.batched = batched
        self.spans: dict[str, Span] = {}
        self.cache: dict[str, list[Array]] = {}  # by session: running sums of every block, one entry per token
        self.computed = 0  # tokens, in all

    def forward(self, batch: Batch) -> Array:
        assert self.batched or len(batch.rows) == 1
        assert len({row.session for row in batch.rows}) == len(batch.rows)
        tail = batch.span.end == BLOCKS
        results, at = [], 0
        for row in batch.rows:
            cache = self.cache.setdefault(row.session, [])
            if self.spans.setdefault(row.session, batch.span) != batch.span:
                raise BackendError("the session runs other blocks here")
            if len(cache) != row.position:
                raise BackendError(f"the KV cache holds {len(cache)} tokens, not {row.position}")
            out = np.stack([self._token(cache, batch.inputs[at + i], batch.span) for i in range(row.length)])
            at += row.length
            self.computed += row.length
            out = out[row.length - row.outputs :] if tail else out
            results.append(out @ HEAD if tail and batch.output == "logits" else out)
        assert at == len(batch.inputs)
        return np.concatenate(results)

    def _token(self, cache: list[Array], value: Array, span: Span) -> Array:
        x = EMBEDDING[int(value)] if span.start == 0 else value
        before = cache[-1] if cache else np.zeros((BLOCKS, WIDTH), np.float32)
        sums = before.copy()
        for block in range(*span):
            sums[block] += x
            x = np.tanh(WEIGHTS[block] @ x + sums[block] / np.float32(len(cache) + 1))
        cache.append(sums)
        return x

    def truncate(self, session: str, length: int) -> None:
        del self.cache.get(session, [])[length:]

    def free(self, session: str) -> None:
        self.cache.pop(session, None)
        self.spans.pop(session, None)

    def memory(self) -> Memory:
        return Memory(0, 0, 1 << 30)


def logits(ids: list[int]) -> Array:
    """`[tokens, vocab]` of the whole model."""
    stage = ToyStage(Span(0, BLOCKS))
    return stage.forward(Batch(np.array(ids, np.int32), [Row("s", 0, len(ids), len(ids))], stage.span))


class Whole:
    """The whole model over one sequence, token by token."""

    def __init__(self) -> None:
        self._stage = ToyStage(Span(0, BLOCKS))
        self._length = 0

    def feed(self, ids: list[int]) -> Array:
        """`[vocab]` logits of the token that follows."""
        batch = Batch(np.array(ids, np.int32), [Row("s", self._length, len(ids), 1)], self._stage.span)
        self._length += len(ids)
        return self._stage.forward(batch)[-1]


def greedy(ids: list[int], new: int) -> list[int]:
    """What the whole model generates."""
    whole, fresh, found = Whole(), list(ids), []
    for _ in range(new):
        fresh = [int(whole.feed(fresh).argmax())]
        found += fresh
    return found
