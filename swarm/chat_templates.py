"""Chat templates of the common families of models, for models that come without one.

A family is known by a token of its vocabulary that no other has. Sources: the model cards of ChatML, Llama 3, Gemma,
Mistral and Zephyr, which write these forms down.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple


class ChatTemplate(NamedTuple):
    """A chat template of a family of models.

    Attributes:
        family: for people.
        sign: the token by which the family is known; empty: any model.
        text: in Jinja, as transformers takes it.
        end: the token that ends an answer; empty: the model's own.
        stop: text that an answer does not go beyond; empty: none.
    """

    family: str
    sign: str
    text: str
    end: str = ""
    stop: str = ""


_ASKED = "{% if add_generation_prompt %}"
# Gemma and Mistral know no system message: it goes before the first thing that the user says.
_SYSTEM = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content + '\n\n' %}"
)

FAMILIES = (
    ChatTemplate(
        "ChatML",
        "<|im_start|>",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        + _ASKED
        + "<|im_start|>assistant\n{% endif %}",
        end="<|im_end|>",
    ),
    ChatTemplate(
        "Llama 3",
        "<|start_header_id|>",
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content }}<|eot_id|>{% endfor %}"
        + _ASKED
        + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        end="<|eot_id|>",
    ),
    ChatTemplate(
        "Gemma",
        "<start_of_turn>",
        "{{ bos_token }}" + _SYSTEM + "{% else %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
        "{{ ns.system }}{{ m.content }}<end_of_turn>\n{% set ns.system = '' %}{% endif %}{% endfor %}"
        + _ASKED
        + "<start_of_turn>model\n{% endif %}",
        end="<end_of_turn>",
    ),
    ChatTemplate(
        "Mistral",
        "[INST]",
        "{{ bos_token }}"
        + _SYSTEM
        + "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
        + "{% else %}[INST] {{ ns.system }}{{ m.content }} [/INST]{% set ns.system = '' %}{% endif %}{% endfor %}",
    ),
    ChatTemplate(
        "Zephyr",
        "<|assistant|>",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        + _ASKED
        + "<|assistant|>\n{% endif %}",
    ),
)
PLAIN = ChatTemplate(
    "plain text",
    "",
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n\n{% endfor %}"
    + _ASKED
    + "Assistant:{% endif %}",
    stop="\n\nUser:",
)


def detect_template(vocabulary: Container[str]) -> ChatTemplate:
    """The template of the family that has this vocabulary; plain text where it is none that is known."""
    return next((template for template in FAMILIES if template.sign in vocabulary), PLAIN)
