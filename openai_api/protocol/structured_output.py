"""Structured output: what an answer must look like, by its request; the grammar that it follows, and the functions that
it may call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openai_api.errors import ApiError, invalid
from openai_api.generation import grammars
from openai_api.generation.generation import ToolOptions
from openai_api.generation.grammars import MOST_CALLS
from openai_api.generation.tool_formats import ToolFormat
from openai_api.protocol.chat import ChatRequest, NamedTool, Tool
from openai_api.protocol.schemas import ResponseFormat
from routing.wire import MAX_GRAMMAR
from swarm.grammar import ConstraintError, guided, of_regex, of_schema, problem_of


def grammar_of(wanted: ResponseFormat | None) -> str:
    """The grammar of a response format; empty where it asks for nothing.

    Raises:
        ApiError: nothing can follow it.
    """
    match wanted:
        case ResponseFormat(type="regex", pattern=str(pattern)):
            try:
                return checked(of_regex(pattern), "response_format.pattern")
            except ConstraintError as error:
                raise invalid(str(error), "response_format", "invalid_grammar") from error
        case ResponseFormat(type="grammar", grammar=str(grammar)):
            return checked(grammar, "response_format.grammar")
        case _:
            schema = schema_of(wanted)
            if schema is None:
                return ""
            return checked(of_schema(schema, _is_strict(wanted)), "response_format.json_schema.schema")


def schema_of(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    """The JSON schema of a response format; None where it asks for no JSON."""
    match wanted:
        case ResponseFormat(type="json_object"):
            return {"type": "object"}
        case ResponseFormat(type="json_schema", json_schema=asked) if asked is not None:
            return asked.schema_ if asked.schema_ is not None else {"type": "object"}
        case _:
            return None


def offered(request: ChatRequest) -> list[Tool]:
    """The tools that the model is told of."""
    tools = [] if request.tool_choice == "none" else list(request.tools or ())
    if isinstance(choice := request.tool_choice, NamedTool):
        return [tool for tool in tools if tool.function.name == choice.function.name]
    return tools


def calling_of(request: ChatRequest, family: ToolFormat, special: Callable[[str], int | None]) -> ToolOptions | None:
    """Which functions the answer may call; None: none."""
    tools = offered(request)
    if not tools:
        return None
    ids = {special(text) for text in family.syntax.markers}
    return ToolOptions(
        family,
        frozenset(tool.function.name for tool in tools),
        MOST_CALLS if request.parallel_tool_calls is not False else 1,
        frozenset(token for token in ids if token is not None),
    )


def constraint_of(request: ChatRequest, family: ToolFormat, special: Callable[[str], int | None]) -> str:
    """The grammar of a chat's answer; empty where it is free.

    Raises:
        ApiError: nothing can follow what was asked for.
    """
    tools = offered(request)
    required = request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)
    content = schema_of(request.response_format)
    if not tools or (not required and content is None and not any(tool.function.strict for tool in tools)):
        wanted = request.response_format
        if tools and wanted is not None and wanted.type in ("regex", "grammar"):
            raise invalid(
                f"A response format of the type '{wanted.type}' cannot stand beside tools.",
                "response_format",
                "invalid_combination",
            )
        return grammar_of(wanted)
    functions = [
        grammars.GrammarFunction(tool.function.name, tool.function.schema_of_arguments, bool(tool.function.strict))
        for tool in tools
    ]
    parallel = request.parallel_tool_calls is not False and not isinstance(request.tool_choice, NamedTool)
    instead = None if content is None else guided(content, _is_strict(request.response_format))
    grammar = grammars.calls(family, functions, special, required=required, parallel=parallel, content=instead)
    return checked(grammar, "tools")


def checked(grammar: str, param: str) -> str:
    """Raises: ApiError: it is none, or longer than a server takes."""
    if len(grammar) > MAX_GRAMMAR:
        raise invalid(
            f"The grammar of '{param}' has {len(grammar)} characters; at most {MAX_GRAMMAR} can be followed.",
            param,
            "grammar_too_long",
        )
    problem = problem_of(grammar)
    if problem:
        raise _unfit(param, problem)
    return grammar


def _unfit(param: str, problem: str) -> ApiError:
    return invalid(
        f"Invalid value for '{param}': no answer can be made to follow it: {problem}", param, "invalid_grammar"
    )


def _is_strict(wanted: ResponseFormat | None) -> bool:
    return bool(wanted and wanted.json_schema and wanted.json_schema.strict)
