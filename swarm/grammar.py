"""Grammar: answers that must follow a grammar; which tokens may come next, computed at the tail.

A grammar is text in llguidance's form: Lark with JSON schemas and regular expressions inside, or its JSON. It comes
from any peer of the swarm, so all that it can cost is bounded: its size by the protocol, the rest by the limits below.
Nothing but the grammar and the answer so far decides what is allowed, so any tail can go on with any answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from routing import wire
from swarm.errors import SwarmError
from swarm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MISSING = "this machine cannot constrain answers: the package llguidance is not installed"

# A line break with its indentation, or a space: with any amount of it, small models write spaces for ever.
_WHITESPACE = r"(\n[ \t]{0,64}| )?"
_EXCERPT = re.compile(r"\d+ \|")
_LIMITS = {
    "max_items_in_row": 1000,
    "initial_lexer_fuel": 1_000_000,  # some 20 ms
    "step_lexer_fuel": 200_000,  # some 15 ms
    "step_max_items": 50_000,  # some 3 ms
    "max_lexer_states": 20_000,  # of 1 to 2 kB
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class ConstraintError(ValueError):
    """A grammar that is none, or is too complex; or one that does not allow what was generated."""


class Constraint:
    """Constraint: where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: LLTokenizer) -> None:
        self._matcher = matcher
        self._ends = frozenset(vocabulary.eos_tokens)

    def allowed(self, width: int) -> npt.NDArray[np.bool_]:
        """`[width]`: the tokens that may come next, the model's end tokens where the grammar is fulfilled.

        Raises:
            ConstraintError: the grammar has become too complex.
        """
        with _failing():
            packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.zeros(width, np.bool_)
        bits = np.unpackbits(packed, bitorder="little")[:width]
        mask[: len(bits)] = bits
        if not mask.any():
            raise ConstraintError("the grammar allows no token of this model here")
        return mask

    def take(self, token: int) -> None:
        """Raises: ConstraintError: the grammar does not allow the token here."""
        if token in self._ends:
            return
        with _failing():
            taken = self._matcher.consume_token(token)
        if not taken:
            problem = _line(self._matcher.get_error())
            raise ConstraintError(f"the grammar does not allow the token {token} here: {problem}")

    def ends(self, token: int) -> bool:
        """Whether the token ends an answer."""
        return token in self._ends

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"the grammar cannot be followed: {_line(self._matcher.get_error())}")


def vocabulary_of(tokenizer: Tokenizer) -> LLTokenizer:
    """What grammars need to know of a vocabulary; takes about a second.

    Raises:
        ConstraintError: llguidance is missing, or the tokenizer is of a kind that it cannot read.
    """
    try:
        import llguidance.hf
    except ImportError as error:
        raise ConstraintError(MISSING) from error
    try:
        return llguidance.hf.from_tokenizer(tokenizer.fast, eos_token=sorted(tokenizer.stop_ids) or None)
    except ValueError as error:
        raise ConstraintError(f"answers of this model cannot be constrained: {_line(error)}") from error


def constrained(grammar: str, vocabulary: LLTokenizer, answer: Iterable[int] = ()) -> Constraint:
    """The place in `grammar` that follows the tokens of `answer`.

    Raises:
        ConstraintError: the grammar is none, is too complex, or does not allow this answer.
    """
    from llguidance import LLMatcher, LLParserLimits

    with _failing():
        limits = LLParserLimits(**_LIMITS)  # type: ignore[arg-type]
        matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise ConstraintError(_line(matcher.get_error()))
    constraint = Constraint(matcher, vocabulary)
    for token in answer:
        constraint.take(token)
    return constraint


class GrammarCompiler:
    """Compiles the grammars of a server's sessions in a thread of its own: the loop has others to serve.

    Args:
        folder: where the model's tokenizer is; it is read when the first grammar comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._vocabulary: LLTokenizer | None = None
        self._pool = ThreadPoolExecutor(1, "grammars")  # its thread starts with the first grammar

    def prepare(self, generation: wire.Generation | None) -> Future[Constraint] | None:
        """What constrains the answer, from where it stands now; None where nothing does.

        The future raises `ConstraintError`.
        """
        if generation is None or not generation.sampling.grammar:
            return None
        return self._pool.submit(self._prepared, generation)

    def compile(self, grammar: str, answer: Iterable[int] = ()) -> Constraint:
        """The same at once, in the caller's thread."""
        if self._vocabulary is None:
            try:
                tokenizer = Tokenizer.load(self._folder)
            except SwarmError as error:
                raise ConstraintError(str(error)) from error
            if tokenizer is None:
                raise ConstraintError("answers of a model without a tokenizer cannot be constrained")
            self._vocabulary = vocabulary_of(tokenizer)
        return constrained(grammar, self._vocabulary, answer)

    def _prepared(self, generation: wire.Generation) -> Constraint:
        with _failing():  # nothing that is wrong with it may end the server
            answer = generation.history[generation.prompt_length :]
            return self.compile(generation.sampling.grammar, answer)


def of_schema(schema: Mapping[str, Any], strict: bool = True) -> str:
    """The grammar of JSON texts that fit a JSON schema.

    Args:
        strict: refuse a schema with keywords that llguidance does not know, instead of passing over them.
    """
    return json.dumps({"grammars": [{"json_schema": guided(schema, strict)}]}, ensure_ascii=False)


def guided(schema: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """The schema with how llguidance is to read it, as it may also stand in a Lark grammar after `%json`."""
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE, "lenient": not strict}}


def of_regex(regex: str) -> str:
    """The grammar of texts that a regular expression matches (Rust's syntax: no look-around, no back-references).

    Raises:
        ConstraintError: llguidance is missing.
    """
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise ConstraintError(MISSING) from error
    return LLMatcher.grammar_from_regex(regex)


def problem_of(grammar: str) -> str:
    """What is wrong with a grammar, whatever the model; empty where nothing is, or llguidance is not here to tell."""
    try:
        from llguidance import LLMatcher, LLParserLimits
    except ImportError:
        return ""
    try:
        with _failing():
            limits = LLParserLimits(**_LIMITS)  # type: ignore[arg-type]
            wrong, problems = LLMatcher.validate_grammar_with_warnings(grammar, None, limits=limits)
    except ConstraintError as error:
        return str(error)
    return _line(problems[0]) if wrong else ""


@contextmanager
def _failing() -> Iterator[None]:
    """Whatever goes wrong in llguidance is the grammar's fault. A panic of its Rust code is no `Exception`."""
    try:
        yield
    except (ConstraintError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ConstraintError(f"the grammar cannot be followed: {_line(error)}") from error


def _line(problem: object) -> str:
    """The message without the excerpt of the grammar that follows it, on one line."""
    lines = [line.strip() for line in str(problem).splitlines()]
    return " ".join(line for line in lines if line.strip("^") and not _EXCERPT.match(line))[:500]
