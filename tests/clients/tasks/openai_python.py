"""The openai package: chat, streams, functions, formats, responses, completions, embeddings, errors."""

import asyncio
import os
from typing import Literal

import openai
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel


class City(BaseModel):
    city: Literal["Paris", "Rome"]


client, model = OpenAI(max_retries=0), os.environ["MODEL"]
question = [{"role": "user", "content": "What is the capital of France?"}]
asked = {"model": model, "messages": question, "temperature": 0}
assert model in [each.id for each in client.models.list()]
choice = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0]
answer = choice.message.content
assert "Paris" in answer and "".join(each.token for each in choice.logprobs.content) == answer
chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == answer
assert chunks[-1].usage.completion_tokens == 8
with client.chat.completions.stream(**asked) as stream:
    assert stream.get_final_completion().choices[0].message.content == answer

assert client.chat.completions.parse(**asked, response_format=City).choices[0].message.parsed.city
with client.chat.completions.stream(**asked, response_format=City) as stream:
    assert stream.get_final_completion().choices[0].message.parsed.city
tools = [pydantic_function_tool(City, name="visit")]
chosen = {"type": "function", "function": {"name": "visit"}}
called = client.chat.completions.parse(**asked, tools=tools, tool_choice=chosen).choices[0].message
assert called.tool_calls[0].function.parsed_arguments.city
told = [*question, called, {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "It rains."}]
assert client.chat.completions.create(**asked | {"messages": told}, tools=tools, max_tokens=20).choices

assert "Paris" in client.responses.create(model=model, input=question[0]["content"], temperature=0).output_text
assert client.responses.parse(model=model, input=question, temperature=0, text_format=City).output_parsed.city
with client.responses.stream(model=model, input=question, temperature=0) as stream:
    assert "Paris" in stream.get_final_response().output_text
echoed = client.completions.create(model=model, prompt="One two", max_tokens=0, echo=True, logprobs=1).choices[0]
assert echoed.text == "One two" and echoed.logprobs.token_logprobs[0] is None
assert len(client.embeddings.create(model=model, input=["a", "b"]).data) == 2

for wrong, kind in (
    ({"model": "nobody"}, openai.NotFoundError),
    ({"messages": [{"role": "user", "content": "word " * 20_000}]}, openai.BadRequestError),
    ({"max_tokens": -1}, openai.BadRequestError),
):
    try:
        client.chat.completions.create(**asked | wrong)
    except kind:
        continue
    raise AssertionError(f"no {kind.__name__}")


async def side_by_side() -> None:
    async with AsyncOpenAI(max_retries=0) as many:
        answers = await asyncio.gather(*(many.chat.completions.create(**asked) for _ in range(3)))
        assert {each.choices[0].message.content for each in answers} == {answer}
        long = await many.chat.completions.create(model=model, messages=question, max_tokens=4000, stream=True)
        async for _ in long:
            break
        await long.close()
        waiting = asyncio.create_task(many.completions.create(model=model, prompt="Once", max_tokens=4000))
        await asyncio.sleep(0.5)
        waiting.cancel()
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)


asyncio.run(side_by_side())
print(answer)
