"""litellm: its OpenAI provider (chat, completions, embeddings, functions, formats, errors) and its Anthropic one."""

import asyncio
import json
import os
from typing import Literal

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it asks another host for prices

import litellm
from pydantic import BaseModel

name = os.environ["MODEL"]
model = f"openai/{name}"
question = [{"role": "user", "content": "What is the capital of France?"}]
asked = {"model": model, "messages": question, "temperature": 0, "max_retries": 0}
answer = litellm.completion(**asked, logprobs=True, top_logprobs=2).choices[0]
text = answer.message.content
assert "Paris" in text and answer.finish_reason == "stop"
assert "".join(each.token for each in answer.logprobs.content) == text
assert all(len(each.top_logprobs) == 2 for each in answer.logprobs.content)

chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
assert chunks[-1].usage.completion_tokens == 8
rebuilt = litellm.stream_chunk_builder(chunks, messages=question)
assert rebuilt.choices[0].message.content == text


class City(BaseModel):
    city: Literal["Paris", "Rome"]


formed = litellm.completion(**asked, response_format=City).choices[0].message.content
assert City.model_validate_json(formed)
schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
tool = {"type": "function", "function": {"name": "visit", "description": "Visit a city", "parameters": schema}}
chosen = {"type": "function", "function": {"name": "visit"}}
(call,) = litellm.completion(**asked, tools=[tool], tool_choice=chosen).choices[0].message.tool_calls
assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
turns = [*question, {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}]
turns += [{"role": "tool", "tool_call_id": call.id, "content": "It rains in Paris."}]
assert litellm.completion(**{**asked, "messages": turns}, tools=[tool], max_tokens=30).choices[0].message.content

completed = litellm.text_completion(model=f"text-completion-openai/{name}", prompt="One two three", max_tokens=4, n=2)
assert len(completed.choices) == 2
assert len(litellm.embedding(model=model, input=["a"]).data) == 1
assert "Paris" in litellm.responses(model=model, input=question[0]["content"], temperature=0).output_text
anthropic = litellm.completion(**{**asked, "model": f"anthropic/{name}"}, max_tokens=40)
assert "Paris" in anthropic.choices[0].message.content

for wrong, kind in (
    ({"model": "openai/nobody"}, litellm.NotFoundError),
    ({"messages": [{"role": "user", "content": "word " * 20_000}]}, litellm.ContextWindowExceededError),
    ({"temperature": 9}, litellm.BadRequestError),
):
    try:
        litellm.completion(**{**asked, **wrong})
    except kind:
        continue
    raise AssertionError(f"no {kind.__name__}")


async def side_by_side() -> None:
    answers = await asyncio.gather(*(litellm.acompletion(**asked) for _ in range(3)))
    assert {each.choices[0].message.content for each in answers} == {text}
    stream = await litellm.acompletion(**{**asked, "messages": [{"role": "user", "content": "Count."}]}, stream=True)
    async for _ in stream:
        break
    await stream.aclose()


asyncio.run(side_by_side())
print(text)
