"""langchain-openai: a question, a stream, a structured answer and a tool."""

import os
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class City(BaseModel):
    """A city"""

    name: Literal["Paris", "Rome"]


model = ChatOpenAI(model=os.environ["MODEL"], temperature=0)
question = "What is the capital of France?"
answer = model.invoke(question).content
assert "Paris" in answer
assert "".join(chunk.content for chunk in model.stream(question)) == answer
assert isinstance(model.with_structured_output(City, method="json_schema").invoke(question), City)
(call,) = model.bind_tools([City], tool_choice="City", parallel_tool_calls=False).invoke(question).tool_calls
assert call["name"] == "City" and call["args"]["name"] in ("Paris", "Rome")
print(answer)
