"""`POST /v1/embeddings`: the model's last hidden states, pooled and normalised.

A model that was trained to chat gives embeddings of modest use; one that was trained for them gives what it should,
where its pooling is `mean` or `last`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from openai_api.accounts.usage import WorkRecord
from openai_api.generation.engine import Engine
from openai_api.generation.generation import Json
from openai_api.protocol.schemas import StrictModel, Text, TokenId

MAX_INPUTS = 256
PART = 512  # tokens whose hidden states are fetched at a time

Floats = npt.NDArray[np.float32]
Inputs = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
Ids = Annotated[list[TokenId], Field(min_length=1)]


class EmbeddingRequest(StrictModel):
    """OpenAI's, with `pooling` in addition: the mean over all tokens (the default), or the last token's state."""

    model: Annotated[Text, Field(min_length=1, max_length=256)]
    input: Text | Inputs | Ids | Annotated[list[Ids], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, lt=1 << 20)] | None = None
    pooling: Literal["mean", "last"] | None = None

    # Inert.
    user: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """The texts, or token ids, one by one."""
        if isinstance(self.input, str):
            return [self.input]
        if all(isinstance(part, int) for part in self.input):
            return [[part for part in self.input if isinstance(part, int)]]
        return [part for part in self.input if not isinstance(part, int)]


async def embedded(engine: Engine, model: str, ids: Sequence[int], pooling: str, work: WorkRecord) -> Floats:
    """The embedding of a text: `[hidden]`, of length one."""
    total: Floats | None = None
    last: Floats | None = None
    async with engine.session(model, len(ids)) as session:
        for start in range(0, len(ids), PART):
            hidden = (await session.step(ids[start : start + PART], output="hidden")).astype(np.float32)
            total = hidden.sum(axis=0) if total is None else total + hidden.sum(axis=0)
            last = hidden[-1]
        work.computed(session.route, len(ids))
    assert total is not None and last is not None
    return normalised(last if pooling == "last" else total / np.float32(len(ids)))


def normalised(vector: Floats) -> Floats:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length > 0 else vector


def shortened(vector: Floats, dimensions: int | None) -> Floats:
    """The first `dimensions` of it, of length one again; for models trained that way (Matryoshka)."""
    return vector if dimensions is None else normalised(vector[:dimensions])


def body(model: str, vectors: Sequence[Floats], encoding: str | None, tokens: int) -> Json:
    data = [
        {"object": "embedding", "index": index, "embedding": encoded(vector, encoding)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def encoded(vector: Floats, encoding: str | None) -> list[float] | str:
    """As numbers, or as the base64 of little-endian single precision, which is what OpenAI's clients ask for."""
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
