"""Grammars: what they allow, that any tail can go on with an answer, and that none keeps a server busy for long."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import wire
from swarm.grammar import ConstraintError, GrammarCompiler, of_regex, of_schema, problem_of
from swarm.sampling import Sampling, looks_back, pick
from swarm.tokenizer import Tokenizer

pytestmark = pytest.mark.model
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(smollm2: Path) -> GrammarCompiler:
    return GrammarCompiler(smollm2)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(smollm2)
    assert tokenizer is not None
    return tokenizer


def noise(seed: int, position: int, width: int) -> Any:
    """Logits of a model that knows nothing."""
    return np.random.default_rng((seed, position)).normal(size=width).astype(np.float32) * 3


def answer(grammars: GrammarCompiler, sampling: Sampling, start: list[int], length: int, width: int) -> list[int]:
    """What a tail that takes over after `start` makes of nonsense."""
    constraint = grammars.compile(sampling.grammar, start)
    tokens = list(start)
    for position in range(len(start), length):
        chosen = pick(
            noise(sampling.seed, position, width), sampling, position, tokens, 0, constraint.allowed(width)
        ).token
        tokens.append(chosen)
        if constraint.ends(chosen):
            break
        constraint.take(chosen)
    return tokens


@settings(max_examples=20)
@given(seed=st.integers(0, 999), cut=st.integers(0, 60), temperature=st.sampled_from([0.0, 0.7, 1.5]))
def test_any_tail_goes_on_with_an_answer_as_the_first_would_have(
    grammars: GrammarCompiler, tokenizer: Tokenizer, seed: int, cut: int, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature, top_p=0.9, seed=seed, grammar=of_schema(PERSON))
    tokens = answer(grammars, sampling, [], 200, 49152)
    assert answer(grammars, sampling, tokens[: min(cut, len(tokens) - 1)], 200, 49152) == tokens
    if tokens[-1] in tokenizer.stop_ids:
        person = json.loads(tokenizer.decode(tokens))
        assert person["age"] >= 0 and len(person["name"]) <= 12 and set(person) == {"name", "age"}


@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_an_answer_matches_its_regular_expression(grammars: GrammarCompiler, tokenizer: Tokenizer, seed: int) -> None:
    pattern = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])/[a-f]{2,4}"
    sampling = Sampling(temperature=1.0, seed=seed, grammar=of_regex(pattern))
    tokens = answer(grammars, sampling, [], 40, 49152)
    assert tokens[-1] in tokenizer.stop_ids
    assert re.fullmatch(pattern, tokenizer.decode(tokens))


def test_a_vocabulary_that_is_narrower_or_wider_than_the_logits_does_no_harm(grammars: GrammarCompiler) -> None:
    constraint = grammars.compile(of_regex("[ab]+"))
    narrow, wide = constraint.allowed(1000), constraint.allowed(60000)
    assert narrow.any() and not wide[49152:].any()
    assert (wide[:1000] == narrow).all()


def test_a_grammar_needs_the_history() -> None:
    assert looks_back(Sampling(grammar="start: /a/"))
    assert not looks_back(Sampling())


def test_a_generation_without_a_grammar_starts_no_thread(tmp_path: Path) -> None:
    assert GrammarCompiler(tmp_path).prepare(wire.Generation(1, 2, Sampling())) is None
    assert GrammarCompiler(tmp_path).prepare(None) is None


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    future = GrammarCompiler(tmp_path).prepare(wire.Generation(1, 2, Sampling(grammar="start: /a/")))
    assert future is not None
    with pytest.raises(ConstraintError, match="without a tokenizer"):
        future.result(60)


def test_an_answer_that_breaks_its_grammar_is_refused(grammars: GrammarCompiler, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConstraintError, match="allow"):
        grammars.compile(of_regex("[0-9]+"), tokenizer.encode("12 apples"))


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("start: nowhere", "nowhere"),
        ("{", "EOF"),
        (of_regex("("), "unclosed"),
        (of_regex("a(?=b)"), "look-around"),
        (of_schema({"type": "thing"}), "thing"),
        (of_schema({"type": "object", "if": {}}), "if"),
        (of_schema({"$ref": "#/nowhere"}), "nowhere"),
        (of_schema({"$ref": "https://example.com/schema"}), "fetch"),
    ],
)
def test_what_is_no_grammar_is_said_in_one_line(grammars: GrammarCompiler, grammar: str, words: str) -> None:
    assert words in problem_of(grammar)
    with pytest.raises(ConstraintError, match=words) as raised:
        grammars.compile(grammar)
    assert "\n" not in str(raised.value)


def test_keywords_that_are_not_known_are_passed_over_only_where_that_was_asked_for() -> None:
    schema = {"type": "object", "if": {}}
    assert problem_of(of_schema(schema)) and not problem_of(of_schema(schema, strict=False))


DEEP: dict[str, Any] = {"type": "integer"}
for _level in range(9):
    DEEP = {"anyOf": [{"type": "array", "items": DEEP}, {"type": "object", "additionalProperties": DEEP}]}


@pytest.mark.parametrize(
    "grammar",
    [
        of_regex("((a{0,1000}){0,1000}){0,1000}"),
        of_regex("(.*a.{200})|(.*b.{210})"),
        of_regex("(" + "|".join(f".*{i}.{{{i}}}" for i in range(100, 180)) + ")x"),
        "start: a a a a a a a a\na: b b b b b b b b | b\nb: c c c c c c c c | c\nc: /[a-z]*/ | c c | c c c",
        'start: start start | start start start | "a" | ""',
        "\n".join(["start: r0", *(f"r{i}: r{i + 1} r{i + 1} | r{i + 1}" for i in range(300)), 'r300: "a"*']),
        of_schema(DEEP),
        of_schema({"enum": [f"{i:05}" for i in range(5000)]}),
        of_schema({"type": "string", "pattern": "^(a|b|ab)*c{1,5000}$", "minLength": 3000}),
        of_schema({"allOf": [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnop"]}),
        "[" * 60000,
        '{"grammars": [' + '{"json_schema": ' * 5000,
    ],
    ids=range(12),
)
def test_a_hostile_grammar_costs_little_or_is_refused(grammars: GrammarCompiler, grammar: str) -> None:
    """Whatever it is, it ends: with a refusal, or with sixteen tokens."""
    try:
        tokens = answer(grammars, Sampling(temperature=1.0, grammar=grammar), [], 16, 49152)
    except ConstraintError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert tokens
