"""What every backend promises: spans of a model, in any cut and any batching, are the whole model."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import Backend, BackendError, Batch, Options, Row, Span, registry
from tests.backends.chain import CPU, Chain
from tests.backends.conftest import MakeModel, run_on_demand
from tests.families import FAMILIES, RECURRENT, VOCABULARY, WIDTH, reference_model, reference_tokens

BLOCKS = 6
CUTS = [(0, 3, 6), (0, 1, 4, 6), (0, 1, 2, 3, 5, 6)]
PROMPTS = [
    [(7 * i + 3) % 500 + 5 for i in range(20)],
    [11, 480, 97],
    [(13 * i * i + 5) % 500 + 5 for i in range(11)],
]
NEW = 20
# Of those that torch exports for onnx, one of each kind is always run, and these on demand.
RARELY = {
    "codegen",
    "cohere",
    "cohere2",
    "deepseek_v3",
    "exaone4",
    "falcon",
    "glm4",
    "gpt_bigcode",
    "gptj",
    "granitemoe",
    "hunyuan",
    "mixtral",
    "mpt",
    "nemotron",
    "olmo",
    "olmo2",
    "opt",
    "phi",
    "qwen3_moe",
    "stablelm",
    "starcoder2",
}


def logits_of_whole(folder: Path, ids: list[int]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        out: np.ndarray = reference_model(folder)(torch.tensor([ids])).logits[0].numpy()
    return out


def known(backend: Backend, folder: Path) -> Path:
    """The model, if the backend runs its family; the default one runs all."""
    try:
        backend.describe(folder)
    except BackendError as error:
        if backend is registry.find(registry.DEFAULT):
            raise
        pytest.skip(str(error))
    return folder


def is_coarse(backend: Backend, family: str) -> bool:
    """Whether the engine computes the family's activation from a table of 16 bits, as llama.cpp does GELU."""
    return family.startswith("gemma") and backend is not registry.find(registry.DEFAULT)


def tokens_of_whole(backend: Backend, folder: Path, family: str) -> list[list[int]]:
    """Greedy tokens after each prompt: Hugging Face's, or the engine's own whole model's where it is coarse."""
    if is_coarse(backend, family):
        return Chain.load(backend, folder, (0, BLOCKS)).generate(PROMPTS, NEW)
    return [reference_tokens(folder, prompt, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_of_a_family_give_the_tokens_of_the_whole_model(
    backend: Backend, model_of: MakeModel, family: str, tmp_path: Path
) -> None:
    """Cut in two, three and five, one-block spans among them, sessions joining each other in ragged batches, prompts
    in chunks, and two tries at the end of a sequence."""
    folder = known(backend, model_of(family))
    if backend is registry.find("onnx") and family in RARELY:
        run_on_demand()
    expected = tokens_of_whole(backend, folder, family)
    sequence = PROMPTS[0] + expected[0]
    logits = logits_of_whole(folder, sequence)
    for cuts in CUTS:
        chain = Chain.load(backend, folder, cuts, replace(CPU, cache=tmp_path))
        assert chain.generate(PROMPTS, NEW) == expected
        for start, end in ((0, 9), (9, 10), (10, 31), (31, len(sequence))):
            out = chain.step({"logits": sequence[start:end]}, {"logits": end - start})["logits"]
            tolerance = 6e-3 if is_coarse(backend, family) else 2e-3
            np.testing.assert_allclose(out, logits[start:end], atol=tolerance * logits.std(), rtol=0)
        back = len(PROMPTS[0]) + NEW // 2
        if family in RECURRENT:
            with pytest.raises(BackendError, match="cannot go back"):
                chain.truncate("0", back)
            chain.truncate("0", 0)
            chain.lengths["0"] = 0
            again = chain.step({"0": PROMPTS[0] + expected[0][:-1]})["0"]
        else:
            chain.step({"0": [5, 6, 7]})  # tokens that are not in the sequence, to be forgotten
            chain.truncate("0", back)
            again = chain.step({"0": expected[0][NEW // 2 : -1]})["0"]
        assert int(again[-1].argmax()) == expected[0][-1]


def test_a_hop_may_enter_and_leave_in_the_middle_of_a_servers_blocks(backend: Backend, model_of: MakeModel) -> None:
    folder = known(backend, model_of("gemma2"))  # its blocks alternate between two kinds of attention
    expected = tokens_of_whole(backend, folder, "gemma2")
    spans = [Span(0, 4), Span(1, 5), Span(2, 6)]
    stages = [backend.load(folder, span, CPU) for span in spans]
    for route in ([(0, 3), (3, 4), (4, 6)], [(0, 1), (1, 5), (5, 6)], [(0, 2), (2, 3), (3, 6)]):
        chain = Chain(stages, [Span(*span) for span in route])
        assert chain.generate(PROMPTS, NEW) == expected
        for session in list(chain.lengths):
            chain.free(session)


def test_a_session_keeps_to_one_sub_range(backend: Backend, model_of: MakeModel) -> None:
    stage = backend.load(known(backend, model_of("llama")), Span(1, 5), CPU)
    x = np.zeros((2, WIDTH), np.float32)
    stage.forward(Batch(x, [Row("a", 0, 2)], Span(2, 4)))
    with pytest.raises(BackendError, match="2:4"):
        stage.forward(Batch(x, [Row("a", 2, 2)], Span(2, 5)))
    with pytest.raises(BackendError, match="1:5"):
        stage.forward(Batch(x, [Row("b", 0, 2)], Span(0, 5)))
    stage.free("a")
    stage.forward(Batch(x, [Row("a", 0, 2)], Span(2, 5)))


def test_outputs_are_those_of_the_wanted_rows(backend: Backend, model_of: MakeModel) -> None:
    import torch

    folder = known(backend, model_of("llama"))
    chain = Chain.load(backend, folder, (0, 4, 6))
    whole = reference_model(folder)
    outputs = {"a": 3, "b": 0, "c": 1}
    pieces = dict(zip(outputs, PROMPTS, strict=True))
    logits = chain.step(pieces, outputs)
    for session in pieces:
        chain.free(session)
    hidden = chain.step(pieces, outputs, output="hidden")
    for session, ids in pieces.items():
        wanted = outputs[session]
        with torch.inference_mode():
            all_hidden = whole.model(torch.tensor([ids])).last_hidden_state[0].numpy()
        assert logits[session].dtype == np.float32
        assert logits[session].shape == (wanted, VOCABULARY)
        assert hidden[session].shape == (wanted, WIDTH)
        np.testing.assert_allclose(hidden[session], all_hidden[len(ids) - wanted :], atol=1e-4)
        expected = logits_of_whole(folder, ids)[len(ids) - wanted :]
        np.testing.assert_allclose(logits[session], expected, atol=1e-3)


def test_no_wanted_rows_give_an_empty_result(backend: Backend, model_of: MakeModel) -> None:
    stage = backend.load(known(backend, model_of("llama")), Span(5, 6), CPU)
    out = stage.forward(Batch(np.zeros((3, WIDTH), np.float32), [Row("a", 0, 3)], Span(5, 6)))
    assert out.shape == (0, VOCABULARY)


def test_bfloat16_crosses_the_interface_as_bfloat16(backend: Backend, model_of: MakeModel) -> None:
    folder = known(backend, model_of("llama"))
    chain = Chain.load(backend, folder, (0, 3, 6), Options(device="cpu", dtype="bfloat16"))
    head = chain.stages[0]
    hidden = head.forward(Batch(np.array([5, 6], np.int32), [Row("x", 0, 2)], head.span))
    assert (head.dtype, hidden.dtype) == ("bfloat16", ml_dtypes.bfloat16)
    logits = chain.step({"a": PROMPTS[0]}, {"a": 20})["a"]
    expected = logits_of_whole(folder, PROMPTS[0])
    assert np.median(np.abs(logits - expected)) < 0.1 * expected.std()


def test_what_is_read_only_or_of_another_dtype_is_taken(backend: Backend, model_of: MakeModel) -> None:
    """Frames off the network cannot be written to, and the hop before may compute in another dtype."""
    stage = backend.load(known(backend, model_of("llama")), Span(2, 4), CPU)
    x = np.linspace(-1, 1, 3 * WIDTH, dtype=np.float32).reshape(3, WIDTH).astype(ml_dtypes.bfloat16)
    frozen = np.frombuffer(x.tobytes(), dtype=ml_dtypes.bfloat16).reshape(x.shape)
    a = stage.forward(Batch(frozen, [Row("a", 0, 3)], stage.span))
    b = stage.forward(Batch(x.astype(np.float32), [Row("b", 0, 3)], stage.span))
    np.testing.assert_array_equal(a, b)


def test_freeing_a_session_gives_its_memory_back(backend: Backend, model_of: MakeModel) -> None:
    stage = backend.load(known(backend, model_of("llama")), Span(0, 6), CPU)
    empty = stage.memory()
    assert empty.weights > 0
    assert empty.free > 0
    ids = np.arange(5, 105, dtype=np.int32)
    stage.forward(Batch(ids, [Row("a", 0, 100)], stage.span))
    used = stage.memory().kv - empty.kv
    assert used >= 100 * stage.kv_bytes_per_token
    stage.free("a")
    stage.free("never seen")
    assert stage.memory().kv == empty.kv
    stage.forward(Batch(ids[:4], [Row("a", 0, 4)], stage.span))  # the name is free for another session


def test_batches_that_do_not_fit_are_refused_and_change_nothing(backend: Backend, model_of: MakeModel) -> None:
    folder = known(backend, model_of("llama"))
    stage = backend.load(folder, Span(0, 6), CPU)
    ids = np.array(PROMPTS[0], np.int32)
    stage.forward(Batch(ids[:8], [Row("a", 0, 8)], stage.span))
    refused = [
        ("does not start where its cache ends", ids[:2], [Row("a", 7, 2)]),
        ("begins anew", ids[:2], [Row("a", 0, 2)]),
        ("is not known here", ids[:2], [Row("b", 5, 2)]),
        ("comes twice", ids[:2], [Row("b", 0, 1), Row("b", 1, 1)]),
        ("has no tokens", ids[:0], [Row("b", 0, 0)]),
        ("wants more outputs than tokens", ids[:1], [Row("b", 0, 1, 2)]),
        ("is not as long as its rows", ids[:3], [Row("b", 0, 2)]),
        ("has no such token", np.array([VOCABULARY], np.int32), [Row("b", 0, 1)]),
        ("outgrows the context", np.zeros(513, np.int32), [Row("b", 0, 513)]),
        ("second row is wrong", ids[:4], [Row("b", 0, 2), Row("a", 9, 2)]),
        ("has no rows", ids[:0], []),
    ]
    for why, inputs, rows in refused:
        with pytest.raises(BackendError):
            stage.forward(Batch(inputs, rows, stage.span))
            pytest.fail(f"a batch was taken that {why}")
    out = stage.forward(Batch(ids[8:], [Row("a", 8, 12, 1)], stage.span))
    np.testing.assert_allclose(out[0], logits_of_whole(folder, PROMPTS[0])[-1], atol=1e-3)


def test_truncating_to_nothing_starts_again(backend: Backend, model_of: MakeModel) -> None:
    chain = Chain.load(backend, known(backend, model_of("mistral")), (0, 2, 6))
    first = chain.step({"a": PROMPTS[0]})["a"]
    chain.truncate("a", 30)  # longer than it is: nothing to forget
    chain.lengths["a"] = 20
    chain.truncate("a", 0)
    chain.truncate("never seen", 5)
    np.testing.assert_allclose(chain.step({"a": PROMPTS[0]})["a"], first, atol=1e-4)


def test_sessions_do_not_see_each_other(backend: Backend, model_of: MakeModel) -> None:
    """A batch of many sessions of many lengths gives each what it gets alone."""
    chain = Chain.load(backend, known(backend, model_of("qwen2")), (0, 3, 6))
    lengths = [1, 40, 3, 17, 64, 65, 2, 130]
    prompts = {str(n): [(n * 31 + i * 7) % 500 + 5 for i in range(n)] for n in lengths}
    together = chain.step(prompts)
    more = chain.step({session: [9] for session in prompts})
    for session, ids in prompts.items():
        alone = f"{session} alone"
        np.testing.assert_allclose(chain.step({alone: ids})[alone], together[session], atol=1e-3)
        np.testing.assert_allclose(chain.step({alone: [9]})[alone], more[session], atol=1e-3)


SEQUENCES = {"a": 33, "b": 70, "c": 9}
Step = dict[str, int] | tuple[str, int]

steps = st.lists(
    st.one_of(
        st.dictionaries(st.sampled_from(sorted(SEQUENCES)), st.integers(1, 20), min_size=1),
        st.tuples(st.sampled_from(sorted(SEQUENCES)), st.integers(0, 70)),
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def whole_and_cut(model_of: MakeModel) -> tuple[dict[str, list[int]], dict[str, np.ndarray], Chain]:
    folder = model_of("mistral")  # a window of 8 tokens, shorter than all of the sequences
    ids = {name: [(i * 37 + len(name) * n) % 500 + 5 for i in range(n)] for name, n in SEQUENCES.items()}
    logits = {name: logits_of_whole(folder, tokens) for name, tokens in ids.items()}
    return ids, logits, Chain.load(registry.find("transformers"), folder, (0, 2, 3, 6))


@settings(max_examples=60, deadline=None)
@given(schedule=steps)
def test_any_schedule_of_chunks_and_truncations_equals_the_plain_run(
    whole_and_cut: tuple[dict[str, list[int]], dict[str, np.ndarray], Chain], schedule: list[Step]
) -> None:
    """Steps are batches (how many more tokens of which sessions) or truncations (of a session to a length)."""
    ids, logits, chain = whole_and_cut
    for session in ids:
        chain.free(session)
    for step in schedule:
        if isinstance(step, tuple):
            session, length = step
            chain.truncate(session, min(length, chain.lengths.get(session, 0)))
            continue
        starts = {session: chain.lengths.get(session, 0) for session in step}
        pieces = {s: ids[s][start : start + step[s]] for s, start in starts.items()}
        pieces = {session: piece for session, piece in pieces.items() if piece}
        if not pieces:
            continue
        out = chain.step(pieces, {session: len(piece) for session, piece in pieces.items()})
        for session, piece in pieces.items():
            start = starts[session]
            np.testing.assert_allclose(out[session], logits[session][start : start + len(piece)], atol=2e-3)


def test_a_model_is_described_without_loading_it(backend: Backend, model_of: MakeModel) -> None:
    folder = known(backend, model_of("llama"))
    info = backend.describe(folder)
    assert (info.architecture, info.blocks, info.hidden_size) == ("LlamaForCausalLM", BLOCKS, WIDTH)
    assert (info.vocab_size, info.context_length, info.dtype) == (VOCABULARY, 512, "float32")
    # 4 heads of 16 share 2 key heads: 64 x 64 for queries and output, 32 x 64 for keys and values, 3 x 128 x 64, norms
    assert info.block_bytes == (4 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64),) * BLOCKS
    assert info.edge_bytes == (4 * VOCABULARY * WIDTH, 4 * (VOCABULARY * WIDTH + WIDTH))
    assert info.kv_bytes_per_token == 4 * 2 * 2 * 16
    stage = backend.load(folder, Span(1, 4), CPU)
    assert (stage.model, stage.span, stage.device, stage.dtype) == (info, Span(1, 4), "cpu", "float32")
    assert stage.kv_bytes_per_token == 3 * info.kv_bytes_per_token
    assert stage.memory().weights >= 3 * info.block_bytes[0]


def test_progress_is_told_in_bytes_up_to_the_whole(backend: Backend, model_of: MakeModel) -> None:
    seen: list[tuple[int, int]] = []
    folder = known(backend, model_of("mixtral"))
    info = backend.describe(folder)
    backend.load(folder, Span(0, 2), Options(device="cpu", progress=lambda *step: seen.append(step)))
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert seen[-1] == (sum(info.block_bytes[:2]) + info.edge_bytes[0],) * 2
    assert all(total == seen[-1][1] for _, total in seen)


def test_spans_can_be_cut_everywhere(backend: Backend, model_of: MakeModel) -> None:
    folder = known(backend, model_of("gpt2"))
    logits = logits_of_whole(folder, PROMPTS[2])
    chain = Chain.load(backend, folder, range(BLOCKS + 1))
    assert [stage.span for stage in chain.stages] == [Span(a, b) for a, b in pairwise(range(BLOCKS + 1))]
    np.testing.assert_allclose(chain.step({"a": PROMPTS[2]})["a"][0], logits[-1], atol=1e-3)
