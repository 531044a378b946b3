"""Chat templates: each family is known by its vocabulary, and asked in the form of its model card."""

from __future__ import annotations

import jinja2
import pytest

from swarm.chat_templates import FAMILIES, PLAIN, ChatTemplate, detect_template

MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]


# As the model cards write them.
WRITTEN = {
    "ChatML": "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello."
    "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "Llama 3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "Gemma": "<s><start_of_turn>user\nBe short.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "Mistral": "<s>[INST] Be short.\n\nHi [/INST] Hello.</s>[INST] Bye [/INST]",
    "Zephyr": "<|system|>\nBe short.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello.</s>\n<|user|>\nBye</s>\n"
    "<|assistant|>\n",
    "plain text": "System: Be short.\n\nUser: Hi\n\nAssistant: Hello.\n\nUser: Bye\n\nAssistant:",
}


@pytest.mark.parametrize("template", [*FAMILIES, PLAIN], ids=lambda template: template.family)
def test_each_family_is_known_by_its_vocabulary_and_asked_in_its_form(template: ChatTemplate) -> None:
    assert detect_template({"the", template.sign} if template.sign else {"the"}) is template
    text = jinja2.Environment(trim_blocks=True).from_string(template.text)
    written = text.render(messages=MESSAGES, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    assert written == WRITTEN[template.family]
