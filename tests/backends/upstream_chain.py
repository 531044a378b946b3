"""Run under the Python of the petals backend: does a chain of its stages do what is promised?

    python -m tests.backends.upstream_chain FOLDER

FOLDER holds a model and `expected.json`, written by another transformers: `prompts`, the `tokens` that follow each, and
the `logits` of the first prompt with its tokens. Prints one line per promise that was held.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from backends import BackendError, Batch, Options, Row, Span, registry
from tests.backends.chain import CPU, Chain

CUTS = [(0, 3, 6), (0, 1, 4, 6), (0, 1, 2, 3, 5, 6)]


def main(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    prompts, tokens, logits = expected["prompts"], expected["tokens"], np.array(expected["logits"], np.float32)
    backend = registry.find("petals")
    info = backend.describe(folder)
    described = (info.architecture, info.blocks, info.hidden_size, info.vocab_size, info.dtype)
    assert described == tuple(expected["described"]), described
    print("described")
    for cuts in CUTS:
        chain = Chain.load(backend, folder, cuts)
        assert chain.generate(prompts, len(tokens[0])) == tokens
        sequence = prompts[0] + tokens[0]
        for start, end in ((0, 9), (9, 10), (10, 31), (31, len(sequence))):
            out = chain.step({"logits": sequence[start:end]}, {"logits": end - start})["logits"]
            np.testing.assert_allclose(out, logits[start:end], atol=2e-3 * logits.std(), rtol=0)
        back = len(prompts[0]) + len(tokens[0]) // 2
        chain.step({"0": [5, 6, 7]})  # tokens that are not in the sequence, to be forgotten
        chain.truncate("0", back)
        again = chain.step({"0": tokens[0][len(tokens[0]) // 2 : -1]})["0"]
        assert int(again[-1].argmax()) == tokens[0][-1]
    print("tokens")
    stages = [backend.load(folder, Span(*span), CPU) for span in ((0, 4), (1, 5), (2, 6))]
    for route in ([(0, 3), (3, 4), (4, 6)], [(0, 1), (1, 5), (5, 6)]):
        chain = Chain(stages, [Span(*span) for span in route])
        assert chain.generate(prompts, len(tokens[0])) == tokens
        for session in list(chain.lengths):
            chain.free(session)
    print("sub-ranges")
    stage = stages[0]
    empty = stage.memory()
    assert empty.weights > sum(info.block_bytes[:4])
    assert empty.kv == 0
    ids = np.arange(5, 305, dtype=np.int32)
    stage.forward(Batch(ids[:100], [Row("a", 0, 100)], Span(0, 4)))
    before = stage.forward(Batch(ids[100:101], [Row("a", 100, 1)], Span(0, 4)))
    stage.truncate("a", 100)
    stage.forward(Batch(ids[100:], [Row("a", 100, 200)], Span(0, 4)))  # outgrows the cache, which moves
    stage.truncate("a", 100)
    np.testing.assert_allclose(stage.forward(Batch(ids[100:101], [Row("a", 100, 1)], Span(0, 4))), before, atol=1e-4)
    assert stage.memory().kv >= 300 * stage.kv_bytes_per_token
    for rows, inputs in (([Row("a", 5, 1)], ids[:1]), ([Row("b", 3, 1)], ids[:1]), ([Row("b", 0, 2)], ids[:1])):
        try:
            stage.forward(Batch(inputs, rows, Span(0, 4)))
        except BackendError:
            continue
        raise AssertionError(f"a batch was taken that it should have refused: {rows}")
    stage.free("a")
    stage.free("never seen")
    assert stage.memory().kv == 0
    print("memory")
    half = [backend.load(folder, Span(*span), Options(device="cpu", dtype="bfloat16")) for span in pairwise((0, 3, 6))]
    out = Chain(half).step({"a": prompts[0]}, {"a": len(prompts[0])})["a"]
    assert np.median(np.abs(out - logits[: len(prompts[0])])) < 0.1 * logits.std()
    print("bfloat16")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
