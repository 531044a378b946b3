"""Grammars of function calls: for each family, what follows one is read as calls of these functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openai_api.generation import grammars
from openai_api.generation.grammars import GrammarFunction
from openai_api.generation.tool_formats import GENERIC, HERMES, LLAMA3, MISTRAL, ToolFormat
from openai_api.generation.tool_parser import ToolCallParser, merged_calls
from swarm.grammar import GrammarCompiler, problem_of
from swarm.sampling import Sampling, pick
from swarm.tokenizer import Tokenizer

pytestmark = pytest.mark.model
FUNCTIONS = [
    GrammarFunction("add", {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}},
                     "required": ["a"], "additionalProperties": False}, True),
    GrammarFunction("now", {"type": "object", "additionalProperties": False}, False),
]  # fmt: skip


@pytest.fixture(scope="module")
def compiler(smollm2: Path) -> GrammarCompiler:
    return GrammarCompiler(smollm2)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(smollm2)
    assert tokenizer is not None
    return tokenizer


def said(compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: str, seed: int, most: int = 300) -> tuple[str, bool]:
    """What a model that knows nothing says under the grammar, and whether it came to an end."""
    sampling = Sampling(temperature=1.0, seed=seed, grammar=grammar)
    constraint, tokens = compiler.compile(grammar), []
    for position in range(most):
        logits = np.random.default_rng((seed, position)).normal(size=49152).astype(np.float32)
        # Ends are likely, or nonsense would go on for ever.
        logits[sorted(tokenizer.stop_ids)] += 5
        token = pick(logits, sampling, position, allowed=constraint.allowed(49152)).token
        if constraint.ends(token):
            return tokenizer.decode(tokens, skip_special_tokens=False), True
        constraint.take(token)
        tokens.append(token)
    return tokenizer.decode(tokens, skip_special_tokens=False), False


def read(family: ToolFormat, text: str) -> tuple[str, list[tuple[str, Any]]]:
    reader = ToolCallParser(family.syntax, {"add", "now"}, 99, family.new_id)
    shown, parts = reader.push(text)
    return shown + reader.flush(), [(call.name, json.loads(call.arguments)) for call in merged_calls(parts)]


@pytest.mark.parametrize("family", [HERMES, GENERIC, LLAMA3, MISTRAL], ids=lambda family: family.name)
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("special", [False, True])
def test_calls_that_are_asked_for_are_read_as_calls(
    compiler: GrammarCompiler, tokenizer: Tokenizer, family: ToolFormat, parallel: bool, special: bool
) -> None:
    # Token 5 stands in for a marker that is a special token.
    opening = family.syntax.opening
    ids = {opening: 5} if special and opening else {}
    grammar = grammars.calls(family, FUNCTIONS, ids.get, required=True, parallel=parallel)
    assert not problem_of(grammar)
    counts = set()
    for seed in range(6):
        text, ended = said(compiler, tokenizer, grammar, seed)
        if ids:
            text = text.replace(tokenizer.decode([5], skip_special_tokens=False), opening)
        shown, calls = read(family, text)
        assert ended and not shown.strip() and calls, text
        for name, arguments in calls:
            assert arguments == {} if name == "now" else set(arguments) == {"a"} and 0 <= arguments["a"] <= 9
        counts.add(len(calls))
    assert counts == {1} if not parallel or family is LLAMA3 else max(counts) > 1 or counts == {1}


@pytest.mark.parametrize("family", [HERMES, GENERIC, LLAMA3, MISTRAL], ids=lambda family: family.name)
def test_where_calls_are_possible_text_is_too(
    compiler: GrammarCompiler, tokenizer: Tokenizer, family: ToolFormat
) -> None:
    grammar = grammars.calls(family, FUNCTIONS, lambda text: None, required=False, parallel=True)
    assert not problem_of(grammar)
    for text in ("Hello.", "", "A < b"):
        constraint = compiler.compile(grammar, tokenizer.encode(text))
        assert constraint.allowed(49152)[sorted(tokenizer.stop_ids)].any()
    before = "" if family is LLAMA3 else "Well. "
    body = f'{{"name": "add", "{family.arguments}": {{"a": 5}}}}'
    call = {"llama3": body, "mistral": f"[TOOL_CALLS][{body}]"}.get(family.name, f"<tool_call>\n{body}\n</tool_call>")
    compiler.compile(grammar, tokenizer.encode(before + call))
    with pytest.raises(ValueError, match="allow"):
        compiler.compile(grammar, tokenizer.encode((before + call).replace("5", "77")))


def test_json_or_a_call(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    grammar = grammars.calls(
        HERMES, FUNCTIONS, lambda text: None, required=False, parallel=False, content={"type": "array", "maxItems": 0}
    )
    compiler.compile(grammar, tokenizer.encode("[]"))
    compiler.compile(grammar, tokenizer.encode('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'))
    with pytest.raises(ValueError, match="allow"):
        compiler.compile(grammar, tokenizer.encode("Well"))
