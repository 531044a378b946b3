"""langchain-openai: chat, streams, functions and an agent's turn, formats, embeddings, errors."""

import asyncio
import os
from typing import Literal

import openai
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class City(BaseModel):
    """A city"""

    name: Literal["Paris", "Rome"]


name = os.environ["MODEL"]
model = ChatOpenAI(model=name, temperature=0, max_retries=0)
question = "What is the capital of France?"
said = model.bind(logprobs=True).invoke(question)
answer = said.content
assert "Paris" in answer and said.usage_metadata["output_tokens"] == 8
assert said.response_metadata["finish_reason"] == "stop" and said.response_metadata["logprobs"]["content"]
chunks = list(model.stream([SystemMessage("You are brief."), HumanMessage(question)], stream_usage=True))
assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0
assert "".join(chunk.content for chunk in model.stream(question)) == answer
assert [each.content for each in model.batch([question, question])] == [answer, answer]

for method in ("json_schema", "function_calling"):
    assert isinstance(model.with_structured_output(City, method=method).invoke(question), City), method
raw = model.with_structured_output(City, method="json_schema", include_raw=True, strict=True).invoke(question)
assert raw["parsing_error"] is None
assert isinstance(model.with_structured_output(None, method="json_mode").invoke('Answer with {"name": "Paris"}.'), dict)
caller = model.bind_tools([City], tool_choice="City", parallel_tool_calls=False)
called = caller.invoke(question)
(call,) = called.tool_calls
assert call["name"] == "City" and call["args"]["name"] in ("Paris", "Rome")
streamed = None
for chunk in caller.stream(question):
    streamed = chunk if streamed is None else streamed + chunk
assert streamed.tool_calls[0]["args"] == call["args"]
turns = [HumanMessage(question), called, ToolMessage("It rains.", tool_call_id=call["id"])]
assert model.bind_tools([City]).bind(max_tokens=30).invoke(turns).content is not None

assert "Paris" in ChatOpenAI(model=name, temperature=0, use_responses_api=True).invoke(question).text
assert OpenAI(model=name, max_tokens=4, temperature=0).invoke("One two three")
# Without this it would fetch OpenAI's tokenizer and send ids of that.
vectors = OpenAIEmbeddings(model=name, check_embedding_ctx_length=False).embed_documents(["a", "b"])
assert len(vectors) == 2

for wrong, kind in ((ChatOpenAI(model="nobody", max_retries=0), openai.NotFoundError), (model, openai.BadRequestError)):
    try:
        wrong.invoke("word " * 20_000)
    except kind:
        continue
    raise AssertionError(f"no {kind.__name__}")


async def side_by_side() -> None:
    answers = await asyncio.gather(*(model.ainvoke(question) for _ in range(3)))
    assert {each.content for each in answers} == {answer}
    async for _ in model.astream("Count to a thousand."):
        break


asyncio.run(side_by_side())
print(answer)
