"""Tool formats: how families of models are told of functions, and how they call them. No I/O.

The family is found by what the model's own chat template contains. A model whose template knows no functions gets them
in the system message, in the words that Hermes, Qwen and SmolLM2 were trained on.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openai_api.generation.tool_parser import CallSyntax

Message = dict[str, Any]

_TAGS = CallSyntax("<tool_call>", "</tool_call>")
_GENERIC = """You are provided with function signatures within <tools></tools> XML tags. You may call one or more \
functions to assist with the user query.

<tools>
{tools}
</tools>

For each function call return a JSON object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@dataclass(frozen=True)
class ToolFormat:
    """Tool format of a family of models: how it is told of functions, and how it calls them.

    Attributes:
        native: the model's template knows functions.
        arguments: what the arguments of a call are called.
        before, between, after: what stands around the objects of forced calls, beside the opening and the closing.
        wrapped: each call has an opening and a closing of its own.
        parallel: it can make several calls at once.
        short_ids: ids of calls are nine letters and digits, by its template.
    """

    name: str
    syntax: CallSyntax
    native: bool = True
    arguments: str = "arguments"
    before: str = ""
    between: str = ""
    after: str = ""
    wrapped: bool = False
    parallel: bool = True
    short_ids: bool = False

    def new_id(self) -> str:
        return secrets.token_hex(5)[:9] if self.short_ids else f"call_{secrets.token_hex(12)}"

    def id_of(self, given: str) -> str:
        """An id that came from the caller, as the template takes it."""
        if not self.short_ids or (len(given) == 9 and given.isascii() and given.isalnum()):
            return given
        return hashlib.sha256(given.encode()).hexdigest()[:9]


HERMES = ToolFormat("hermes", _TAGS, before="\n", between="\n", after="\n", wrapped=True)
GENERIC = ToolFormat("generic", _TAGS, native=False, before="\n", between="\n", after="\n", wrapped=True)
MISTRAL = ToolFormat("mistral", CallSyntax("[TOOL_CALLS]", "]", " \t\r\n[,"), before="[", between=", ", short_ids=True)
LLAMA3 = ToolFormat(
    "llama3", CallSyntax("", "", " \t\r\n;", "<|python_tag|>"), arguments="parameters", between="; ", parallel=False
)


def family_of(template: str) -> ToolFormat:
    """By what a chat template contains. Formats that are no JSON objects are not known; those models get `GENERIC`."""
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return MISTRAL
    if "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template:
        return HERMES
    if "<|python_tag|>" in template or ('"parameters"' in template and "ipython" in template):
        return LLAMA3
    return GENERIC


def prepared(
    family: ToolFormat, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> tuple[list[Message], dict[str, Any]]:
    """Messages and further arguments for the model's template.

    Args:
        messages: in OpenAI's form, with the arguments of calls as objects.
        tools: in OpenAI's form.
    """
    if family.native:
        known = [_with_ids(family, message) for message in messages]
        return known, {"tools": list(tools)} if tools else {}
    plain = [_plain(message) for message in messages]
    if tools:
        text = _GENERIC.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
        if plain and plain[0]["role"] == "system":
            text, plain = f"{plain[0]['content']}\n\n{text}", plain[1:]
        plain.insert(0, {"role": "system", "content": text})
    return plain, {}


def _with_ids(family: ToolFormat, message: Message) -> Message:
    changed = dict(message)
    if "tool_call_id" in changed:
        changed["tool_call_id"] = family.id_of(changed["tool_call_id"])
    if "tool_calls" in changed:
        changed["tool_calls"] = [{**call, "id": family.id_of(call["id"])} for call in changed["tool_calls"]]
    return changed


def _plain(message: Message) -> Message:
    """A message about calls as text."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    text = "\n".join(filter(None, [message["content"], *calls]))
    return {name: value for name, value in message.items() if name != "tool_calls"} | {"content": text}
