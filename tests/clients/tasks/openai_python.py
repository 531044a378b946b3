"""The openai package: a question, a stream, a function, a schema, a response, embeddings."""

import json
import os

from openai import OpenAI

client, model = OpenAI(), os.environ["MODEL"]
question = [{"role": "user", "content": "What is the capital of France?"}]
assert model in [each.id for each in client.models.list()]
answer = client.chat.completions.create(model=model, messages=question, temperature=0)
assert "Paris" in answer.choices[0].message.content
stream = client.chat.completions.create(model=model, messages=question, temperature=0, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer.choices[0].message.content
schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
tool = {"type": "function", "function": {"name": "visit", "parameters": schema}}
called = client.chat.completions.create(
    model=model, messages=question, temperature=0, tools=[tool], tool_choice="required", parallel_tool_calls=False
)
assert json.loads(called.choices[0].message.tool_calls[0].function.arguments)["city"] in ("Paris", "Rome")
wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
formed = client.chat.completions.create(model=model, messages=question, temperature=0, response_format=wanted)
assert json.loads(formed.choices[0].message.content)["city"] in ("Paris", "Rome")
assert "Paris" in client.responses.create(model=model, input=question[0]["content"], temperature=0).output_text
assert len(client.embeddings.create(model=model, input=["a", "b"]).data) == 2
print(answer.choices[0].message.content)
