"""The anthropic package: messages, streams, tools over two turns, a schema, counting, errors."""

import asyncio
import os

import anthropic
from anthropic import Anthropic, AsyncAnthropic

client, model = Anthropic(max_retries=0), os.environ["MODEL"]
question = {"role": "user", "content": "What is the capital of France?"}
asked = {"model": model, "max_tokens": 40, "messages": [question], "extra_body": {"temperature": 0}}
answer = client.messages.create(**asked)
text = answer.content[0].text
assert "Paris" in text and answer.stop_reason == "end_turn" and answer.usage.output_tokens == 8
with client.messages.stream(**asked) as stream:
    assert "".join(stream.text_stream) == text
    assert stream.get_final_message().usage.output_tokens == 8
assert client.messages.create(**asked, stop_sequences=["capital"]).stop_sequence == "capital"
assert client.messages.count_tokens(model=model, messages=[question]).input_tokens == answer.usage.input_tokens

schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
tool = {"name": "visit", "input_schema": schema}
used = client.messages.create(**asked, tools=[tool], tool_choice={"type": "tool", "name": "visit"})
assert used.stop_reason == "tool_use" and used.content[0].input["city"] in ("Paris", "Rome")
with client.messages.stream(**asked, tools=[tool], tool_choice={"type": "any"}) as stream:
    assert stream.get_final_message().content[0].input["city"] in ("Paris", "Rome")
result = {"type": "tool_result", "tool_use_id": used.content[0].id, "content": "It rains."}
turns = [question, {"role": "assistant", "content": used.content}, {"role": "user", "content": [result]}]
assert client.messages.create(**asked | {"messages": turns}, tools=[tool]).content

for wrong, kind in (
    ({"model": "nobody"}, anthropic.NotFoundError),
    ({"messages": [{"role": "user", "content": "word " * 20_000}]}, anthropic.BadRequestError),
):
    try:
        client.messages.create(**asked | wrong)
    except kind:
        continue
    raise AssertionError(f"no {kind.__name__}")


async def side_by_side() -> None:
    async with AsyncAnthropic(max_retries=0) as many:
        answers = await asyncio.gather(*(many.messages.create(**asked) for _ in range(2)))
        assert {each.content[0].text for each in answers} == {text}
        async with many.messages.stream(**asked | {"max_tokens": 4000}) as stream:
            async for _ in stream:
                break


asyncio.run(side_by_side())
print(text)
