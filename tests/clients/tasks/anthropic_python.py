"""The anthropic package: a question, a stream, a tool."""

import os

from anthropic import Anthropic

client, model = Anthropic(), os.environ["MODEL"]
asked = {
    "model": model,
    "max_tokens": 40,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "extra_body": {"temperature": 0},
}
answer = client.messages.create(**asked)
assert "Paris" in answer.content[0].text and answer.stop_reason == "end_turn"
with client.messages.stream(**asked) as stream:
    assert "".join(stream.text_stream) == answer.content[0].text
tool = {
    "name": "visit",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
}
used = client.messages.create(**asked, tools=[tool], tool_choice={"type": "tool", "name": "visit"})
assert used.stop_reason == "tool_use" and used.content[0].input["city"] in ("Paris", "Rome")
print(answer.content[0].text)
