"""Routes of inference: OpenAI's API, Anthropic's, and vLLM's tokenizer."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from openai_api.errors import model_not_found
from openai_api.http.scopes import scoped
from openai_api.protocol import messages, openapi
from openai_api.protocol.chat import ChatRequest
from openai_api.protocol.embeddings import EmbeddingRequest
from openai_api.protocol.messages import CountRequest, MessageOutput, MessagesRequest
from openai_api.protocol.models import catalogue, described
from openai_api.protocol.openapi import MESSAGES_ERRORS, answers
from openai_api.protocol.responses import ResponseOutput, ResponsesRequest
from openai_api.protocol.schemas import CompletionRequest
from openai_api.protocol.tokens import DetokenizeRequest, Name, TokenizeRequest
from openai_api.routes.exchange import Exchanged
from openai_api.routes.state import Caller, State

router = APIRouter(responses=openapi.errors(), route_class=scoped("inference"))


@router.get("/v1/models", responses=answers(openapi.ModelList))
async def list_models(state: State, caller: Caller, available: bool = False) -> Response:
    """The models of the swarm, those whose blocks are all served first.

    With `available`, also those of the catalogue that no server holds yet. The field `status` says which is which:
    `ready`, `incomplete` (blocks are missing) or `available`.
    """
    gateway = state.gateway
    models = [described(model, gateway.started) for model in gateway.models()]
    if available:
        models += catalogue({model["id"] for model in models}, gateway.started)
    models = [model for model in models if caller.allows(model["id"])]
    return JSONResponse({"object": "list", "data": models})


@router.get("/v1/models/{model:path}", responses=answers(openapi.ModelObject))
async def retrieve_model(model: str, state: State, caller: Caller) -> Response:
    gateway = state.gateway
    found = gateway.model(model)
    if not caller.allows(found.name):
        raise model_not_found(model, sorted(each.name for each in gateway.models() if caller.allows(each.name)))
    return JSONResponse(described(found, gateway.started))


@router.post("/v1/completions", responses=answers(openapi.Completion, streamed=True))
async def create_completion(body: CompletionRequest, state: State, exchange: Exchanged) -> Response:
    await exchange.admit(body.model)
    return await exchange.answer(state.gateway.completion(body), bool(body.stream))


@router.post("/v1/chat/completions", responses=answers(openapi.ChatCompletion, streamed=True))
async def create_chat_completion(body: ChatRequest, state: State, exchange: Exchanged) -> Response:
    await exchange.admit(body.model)
    return await exchange.answer(state.gateway.chat(body), bool(body.stream))


@router.post("/v1/responses", responses=answers(openapi.ResponseObject, streamed=True))
async def create_response(body: ResponsesRequest, state: State, exchange: Exchanged) -> Response:
    """Without state: nothing is stored, so `previous_response_id` and `conversation` are refused."""
    output = ResponseOutput(body)
    await exchange.admit(body.model)
    planned = state.gateway.chat(body.for_chat(), output, "resp_", "input")
    return await exchange.answer(planned, bool(body.stream), output.failure)


@router.post("/v1/embeddings", responses=answers(openapi.EmbeddingList))
async def create_embeddings(body: EmbeddingRequest, state: State, exchange: Exchanged) -> Response:
    """Pooled hidden states of the last block, of length one."""
    metered = await exchange.admit(body.model)
    return JSONResponse(await exchange.wait_for(state.gateway.embeddings(body, metered)))


@router.post("/tokenize", responses=answers(openapi.Tokens))
async def tokenize(body: TokenizeRequest, state: State, exchange: Exchanged) -> Response:
    """The token ids of a text or a conversation."""
    await exchange.admit(body.model)
    return JSONResponse(await exchange.wait_for(state.gateway.tokenize(body)))


@router.post("/detokenize", responses=answers(openapi.Detokenized))
async def detokenize(body: DetokenizeRequest, state: State, exchange: Exchanged) -> Response:
    """The text of token ids."""
    await exchange.admit(body.model)
    return JSONResponse(await exchange.wait_for(state.gateway.detokenize(body)))


@router.get("/tokenizer_info", responses=answers(openapi.TokenizerInfo))
async def tokenizer_info(state: State, exchange: Exchanged, model: Name | None = None) -> Response:
    """Special tokens and the chat template; lm-eval and others make their prompts with them."""
    await exchange.admit(model)
    return JSONResponse(await exchange.wait_for(state.gateway.tokenizer_info(model)))


@router.post(messages.PATH, responses={**MESSAGES_ERRORS, **answers(openapi.MessageObject, streamed=True)})
async def create_message(body: MessagesRequest, state: State, exchange: Exchanged) -> Response:
    """Anthropic's API."""
    output = MessageOutput()
    await exchange.admit(body.model)
    return await exchange.answer(state.gateway.chat(body.as_chat(), output, "msg_"), bool(body.stream), output.failure)


@router.post(f"{messages.PATH}/count_tokens", responses={**MESSAGES_ERRORS, **answers(openapi.TokenCount)})
async def count_tokens(body: CountRequest, state: State, exchange: Exchanged) -> Response:
    await exchange.admit(body.model)
    count = await exchange.wait_for(state.gateway.count(body.for_chat()))
    return JSONResponse({"input_tokens": count})
