"""`POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, in vLLM's form.

vLLM serves one model, so its callers need not name it; here neither, where there is only one.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from openai_api.protocol.chat import ChatMessage, Tool
from openai_api.protocol.schemas import StrictModel, Text, TokenId, combination

MAX_IDS = 1 << 20
Name = Annotated[Text, Field(min_length=1, max_length=256)]


class TokenizeRequest(StrictModel):
    """A text, or a conversation, which the model's template writes."""

    model: Name | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _combinations(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise combination("prompt", "give either 'prompt' or 'messages'")
        if self.messages is None and self.tools:
            raise combination("tools", "they are only allowed beside 'messages'")
        if self.messages is not None and self.add_special_tokens is not None:
            raise combination("add_special_tokens", "the template of a conversation decides that")
        return self


class DetokenizeRequest(StrictModel):
    """Token ids whose text is asked for."""

    model: Name | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_IDS)]
