"""litellm: a question, a stream and embeddings through its OpenAI provider."""

import os

import litellm

model = f"openai/{os.environ['MODEL']}"
question = [{"role": "user", "content": "What is the capital of France?"}]
answer = litellm.completion(model=model, messages=question, temperature=0).choices[0].message.content
assert "Paris" in answer
stream = litellm.completion(model=model, messages=question, temperature=0, stream=True)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer
assert len(litellm.embedding(model=model, input=["a"], encoding_format="float").data) == 1
print(answer)
