"""From a checked request to the answer that is to be made: which model, which tokens, how many of them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence

import msgspec

from openai_api.accounts.access import MeteredRequest
from openai_api.errors import incomplete, invalid, model_not_found
from openai_api.generation.engine import Engine
from openai_api.generation.generation import Answer, AnswerFormat, ChoicePlan, Json, ToolOptions
from openai_api.generation.token_texts import TokenTexts
from openai_api.generation.tool_formats import family_of, prepared
from openai_api.protocol import embeddings
from openai_api.protocol.chat import ChatFormat, ChatMessage, ChatRequest, Tool
from openai_api.protocol.chunks import Chunked
from openai_api.protocol.completions import CompletionFormat
from openai_api.protocol.embeddings import EmbeddingRequest, embedded, shortened
from openai_api.protocol.parameters import CHAT_TOKENS, COMPLETION_TOKENS, new_tokens, sampling_of, seed_of
from openai_api.protocol.schemas import MAX_CHOICES, CompletionRequest, GenerationRequest
from openai_api.protocol.structured_output import calling_of, constraint_of, grammar_of, offered
from openai_api.protocol.tokens import DetokenizeRequest, TokenizeRequest
from swarm import Sampling, ServedModel, SwarmError
from swarm.models.resolve import match_spelling
from swarm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

PREFETCH_PAUSE = 2.0  # s between two looks for new models


class Gateway:
    """Gateway: from a request of an API to what the swarm is asked for.

    Args:
        checks: how many parts of each answer other servers compute anew; embeddings are not checked.
        clock: seconds since the epoch.
        draw: a random seed for a request that has none.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        checks: int = 0,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], int] = lambda: secrets.randbits(63),
    ) -> None:
        self.engine = engine
        self.started = int(clock())
        self._checks = checks
        self._clock = clock
        self._draw = draw
        self._texts: dict[str, tuple[Tokenizer | None, TokenTexts]] = {}
        # One at a time: a tokenizer must not be used by two threads at once.
        self._encoding = asyncio.Lock()

    def models(self) -> list[ServedModel]:
        """The swarm's models, those that can be used first: many clients take the first one."""
        return sorted(self.engine.models(), key=lambda model: (not model.complete, model.name))

    def model(self, name: str) -> ServedModel:
        """Capitals need not be right, where only one model can be meant.

        Raises:
            ApiError: there is no such model.
        """
        models = {model.name: model for model in self.engine.models()}
        found = models.get(name) or models.get(match_spelling(name, models))
        if found is None:
            raise model_not_found(name, sorted(models))
        return found

    async def prefetch(self, pause: float = PREFETCH_PAUSE) -> None:
        """Get the tokenizer of each model as soon as it is complete, for ever: the first request need not wait then."""
        tried: set[str] = set()
        while True:
            for name in {model.name for model in self.engine.models() if model.complete} - tried:
                tried.add(name)
                try:
                    await self.engine.tokenizer(name)
                except SwarmError as error:
                    log.info("no tokenizer of %s yet: %s", name, error)
            await asyncio.sleep(pause)

    async def completion(self, request: CompletionRequest) -> Answer:
        """
        Raises:
            ApiError: the request cannot be answered, and why.
            SwarmError: the tokenizer could not be had.
        """
        model, tokenizer = await self._ready(request)
        prompts = request.prompts
        if not prompts:
            raise invalid("The prompt is empty: give a text or token ids.", "prompt", "empty_prompt")
        if len(prompts) * request.choices > MAX_CHOICES:
            raise invalid(f"At most {MAX_CHOICES} choices can be asked for at once.", "prompt")
        ids = [prompt if isinstance(prompt, list) else await self._encode(tokenizer, prompt) for prompt in prompts]
        output = Chunked(CompletionFormat(self._token_texts(model, tokenizer), request.alternatives >= 0))
        grammar = await asyncio.to_thread(grammar_of, request.response_format)
        limits = [new_tokens(request.max_tokens, COMPLETION_TOKENS, len(prompt), model, "prompt") for prompt in ids]
        echoes = [_text_of(prompt, tokenizer) if request.echo else None for prompt in prompts]
        made = list(zip(ids, limits, echoes, strict=True))
        return self._answer("cmpl-", request, model, tokenizer, output, made, grammar)

    async def chat(
        self, request: ChatRequest, output: AnswerFormat | None = None, kind: str = "chatcmpl-", param: str = "messages"
    ) -> Answer:
        """The next message of a conversation. Raises as `completion` does.

        Args:
            output: how it is written down; by default as a chat completion.
            kind: what the answer's id begins with.
            param: what the caller calls the messages.
        """
        model, tokenizer = await self._ready(request)
        tokenizer = _needed(tokenizer, model)
        family = family_of(tokenizer.chat_template)
        ids = await self._chat_ids(request, tokenizer)
        special = {text: tokenizer.special_id(text) for text in family.syntax.markers}
        calling = calling_of(request, family, special.get)
        grammar = await asyncio.to_thread(constraint_of, request, family, special.get)
        limit = new_tokens(request.limit, CHAT_TOKENS, len(ids), model, param)
        output = output or Chunked(ChatFormat(self._token_texts(model, tokenizer), request.alternatives >= 0))
        return self._answer(kind, request, model, tokenizer, output, [(ids, limit, None)], grammar, calling)

    async def embeddings(self, request: EmbeddingRequest, turn: MeteredRequest) -> Json:
        """Raises as `completion` does."""
        model = self.model(request.model)
        if not model.complete:
            raise incomplete(model.name, model.missing)
        tokenizer = await self.engine.tokenizer(model.name)
        ids = [each if isinstance(each, list) else await self._encode(tokenizer, each) for each in request.inputs]
        for each in ids:
            new_tokens(0, 0, len(each), model, "input")
        turn.prompt, pooling = sum(map(len, ids)), request.pooling or "mean"
        vectors = [
            shortened(await embedded(self.engine, model.name, each, pooling, turn.work), request.dimensions)
            for each in ids
        ]
        return embeddings.body(model.name, vectors, request.encoding_format, turn.prompt)

    async def tokenize(self, request: TokenizeRequest) -> Json:
        """Raises as `completion` does."""
        model, tokenizer = await self._with_tokenizer(request.model)
        if request.messages is not None:
            ids = await self._template_ids(tokenizer, request.messages, request.tools or [])
        else:
            async with self._encoding:
                ids = await asyncio.to_thread(
                    tokenizer.encode, request.prompt or "", request.add_special_tokens is not False
                )
        found: Json = {"tokens": ids, "count": len(ids), "max_model_len": model.context_length}
        if request.return_token_strs:
            texts = self._token_texts(model, tokenizer)
            found["token_strs"] = [texts.text(token) for token in ids]
        return found

    async def detokenize(self, request: DetokenizeRequest) -> Json:
        """Raises as `completion` does."""
        _, tokenizer = await self._with_tokenizer(request.model)
        async with self._encoding:
            return {"prompt": await asyncio.to_thread(tokenizer.decode, request.tokens, False)}

    async def tokenizer_info(self, name: str | None) -> Json:
        """What vLLM's clients must know to make and cut prompts themselves. Raises as `completion` does."""
        model, tokenizer = await self._with_tokenizer(name)
        return {
            "model": model.name,
            "model_max_length": model.context_length,
            **tokenizer.special_texts,
            "chat_template": tokenizer.chat_template or None,
        }

    def meant(self, name: str | None) -> ServedModel:
        """The named model, or the only one. Raises: ApiError: there is no such model, or not only one."""
        models = self.models()
        if name is None and len(models) != 1:
            names = ", ".join(model.name for model in models) or "none yet"
            message = f"Missing required parameter: 'model'. This swarm serves {names}."
            raise invalid(message, "model", "missing_required_parameter")
        return models[0] if name is None else self.model(name)

    async def _with_tokenizer(self, name: str | None) -> tuple[ServedModel, Tokenizer]:
        model = self.meant(name)
        return model, _needed(await self.engine.tokenizer(model.name), model)

    async def count(self, request: ChatRequest) -> int:
        """Tokens of a conversation's prompt. Raises as `completion` does."""
        model, tokenizer = await self._ready(request)
        return len(await self._chat_ids(request, _needed(tokenizer, model)))

    async def _chat_ids(self, request: ChatRequest, tokenizer: Tokenizer) -> list[int]:
        return await self._template_ids(tokenizer, request.messages, offered(request))

    async def _template_ids(
        self, tokenizer: Tokenizer, conversation: Sequence[ChatMessage], tools: Sequence[Tool]
    ) -> list[int]:
        messages, options = prepared(
            family_of(tokenizer.chat_template),
            [message.for_template() for message in conversation],
            [tool.for_template() for tool in tools],
        )
        async with self._encoding:
            return await asyncio.to_thread(tokenizer.chat, messages, **options)

    async def _ready(self, request: GenerationRequest) -> tuple[ServedModel, Tokenizer | None]:
        model = self.model(request.model)
        if not model.complete:
            raise incomplete(model.name, model.missing)
        tokenizer = await self.engine.tokenizer(model.name)
        if tokenizer is None and request.stops:
            raise invalid(f"The model '{model.name}' has no tokenizer, so it has no text to stop at.", "stop")
        if tokenizer is None and request.response_format is not None:
            raise invalid(f"The model '{model.name}' has no tokenizer, so it has no text to format.", "response_format")
        return model, tokenizer

    async def _encode(self, tokenizer: Tokenizer | None, text: str) -> list[int]:
        if tokenizer is None:
            raise invalid("This model has no tokenizer: send token ids, and ask for 'return_token_ids'.", "prompt")
        async with self._encoding:
            return await asyncio.to_thread(tokenizer.encode, text)

    def _token_texts(self, model: ServedModel, tokenizer: Tokenizer | None) -> TokenTexts:
        known = self._texts.get(model.name)
        if known is None or known[0] is not tokenizer:
            known = self._texts[model.name] = (tokenizer, TokenTexts(tokenizer))
        return known[1]

    def _answer(
        self,
        kind: str,
        request: GenerationRequest,
        model: ServedModel,
        tokenizer: Tokenizer | None,
        output: AnswerFormat,
        prompts: list[tuple[list[int], int, str | None]],
        grammar: str,
        calling: ToolOptions | None = None,
    ) -> Answer:
        seed = seed_of(request, self._draw)
        stop_ids = tokenizer.stop_ids if tokenizer else ()
        return Answer(
            id=f"{kind}{secrets.token_hex(12)}",
            model=model.name,
            created=int(self._clock()),
            fingerprint=fingerprint(model),
            output=output,
            plans=tuple(
                ChoicePlan(
                    tuple(ids), limit, self._checkable(sampling_of(request, stop_ids, seed, choice, grammar)), echo
                )
                for ids, limit, echo in prompts
                for choice in range(request.choices)
            ),
            tokenizer=tokenizer,
            stops=request.stops,
            prompt_tokens=sum(len(ids) for ids, _, _ in prompts),
            token_ids=bool(request.return_token_ids),
            usage=request.include_usage,
            checks=self._checks,
            calling=calling,
        )

    def _checkable(self, sampling: Sampling) -> Sampling:
        """With the log-probabilities that a check compares."""
        return msgspec.structs.replace(sampling, logprobs=0) if self._checks and sampling.logprobs < 0 else sampling


def _needed(tokenizer: Tokenizer | None, model: ServedModel) -> Tokenizer:
    if tokenizer is None:
        raise invalid(
            f"The model '{model.name}' has no tokenizer, so it cannot chat. Send token ids to /v1/completions.", "model"
        )
    return tokenizer


def _text_of(prompt: str | list[int], tokenizer: Tokenizer | None) -> str:
    if isinstance(prompt, str):
        return prompt
    return tokenizer.decode(prompt, skip_special_tokens=False) if tokenizer else ""


def fingerprint(model: ServedModel) -> str:
    """What computes the model: as long as it stays the same, so do the answers to one seed.

    Backends and their versions, and a digest of weights and number formats.
    """
    servers = [server for server in model.servers if server.state == "ready"] or list(model.servers)
    engines = sorted({f"{server.backend}-{server.version}".strip("-") for server in servers})
    files = sorted({item for server in servers for item in server.fingerprint.items()})
    formats = sorted({(server.dtype, server.quantize) for server in servers})
    digest = hashlib.sha256(repr((files, formats)).encode()).hexdigest()[:10]
    return "+".join([*engines, digest])
