"""The routes of the gateway."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from openai_api.errors import model_not_found
from openai_api.http.respond import answered, placed
from openai_api.protocol import messages, openapi
from openai_api.protocol.chat_schemas import ChatRequest
from openai_api.protocol.embeddings import EmbeddingRequest
from openai_api.protocol.message_schemas import CountRequest, MessagesRequest
from openai_api.protocol.messages import MessageOutput
from openai_api.protocol.models import catalogue, described
from openai_api.protocol.openapi import MESSAGES_ERRORS, answers
from openai_api.protocol.response_schemas import ResponsesRequest
from openai_api.protocol.responses import ResponseOutput
from openai_api.protocol.schemas import CompletionRequest
from openai_api.protocol.tokens import DetokenizeRequest, Name, TokenizeRequest
from swarm import ServedModel

router = APIRouter(responses=openapi.errors())
open_router = APIRouter(responses=openapi.errors())  # what needs no key


@router.get("/v1/models", responses=answers(openapi.ModelList))
async def list_models(request: Request, available: bool = False) -> Response:
    """The models of the swarm, those whose blocks are all served first.

    With `available`, also those of the catalogue that nobody serves yet. The field `status` says which is which:
    `ready`, `incomplete` (blocks are missing) or `available`.
    """
    gateway = request.app.state.gateway
    models = [described(model, gateway.started) for model in gateway.models()]
    if available:
        models += catalogue({model["id"] for model in models}, gateway.started)
    models = [model for model in models if request.state.caller.allows(model["id"])]
    return JSONResponse({"object": "list", "data": models})


@router.get("/v1/models/{model:path}", responses=answers(openapi.ModelObject))
async def retrieve_model(model: str, request: Request) -> Response:
    gateway, caller = request.app.state.gateway, request.state.caller
    found = gateway.model(model)
    if not caller.allows(found.name):
        raise model_not_found(model, sorted(each.name for each in gateway.models() if caller.allows(each.name)))
    return JSONResponse(described(found, gateway.started))


@router.post("/v1/completions", responses=answers(openapi.Completion, streamed=True))
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    return await answered(request, body.model, lambda: request.app.state.gateway.completion(body), bool(body.stream))


@router.post("/v1/chat/completions", responses=answers(openapi.ChatCompletion, streamed=True))
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    return await answered(request, body.model, lambda: request.app.state.gateway.chat(body), bool(body.stream))


@router.post("/v1/responses", responses=answers(openapi.ResponseObject, streamed=True))
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """Without state: nothing is stored, so `previous_response_id` and `conversation` are refused."""
    output, gateway = ResponseOutput(body), request.app.state.gateway
    return await answered(
        request,
        body.model,
        lambda: gateway.chat(body.for_chat(), output, "resp_", "input"),
        bool(body.stream),
        output.failure,
    )


@router.post("/v1/embeddings", responses=answers(openapi.EmbeddingList))
async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Pooled hidden states of the last block, of length one."""
    return JSONResponse(
        await placed(request, body.model, lambda turn: request.app.state.gateway.embeddings(body, turn))
    )


@router.post("/tokenize", responses=answers(openapi.Tokens))
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The token ids of a text or a conversation."""
    return JSONResponse(await placed(request, body.model, lambda _: request.app.state.gateway.tokenize(body)))


@router.post("/detokenize", responses=answers(openapi.Detokenized))
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of token ids."""
    return JSONResponse(await placed(request, body.model, lambda _: request.app.state.gateway.detokenize(body)))


@router.get("/tokenizer_info", responses=answers(openapi.TokenizerInfo))
async def tokenizer_info(request: Request, model: Name | None = None) -> Response:
    """Special tokens and the chat template; lm-eval and others make their prompts with them."""
    return JSONResponse(await placed(request, model, lambda _: request.app.state.gateway.tokenizer_info(model)))


@router.post(messages.PATH, responses={**MESSAGES_ERRORS, **answers(openapi.MessageObject, streamed=True)})
async def create_message(body: MessagesRequest, request: Request) -> Response:
    """Anthropic's API."""
    output, gateway = MessageOutput(), request.app.state.gateway
    return await answered(
        request, body.model, lambda: gateway.chat(body.as_chat(), output, "msg_"), bool(body.stream), output.failure
    )


@router.post(f"{messages.PATH}/count_tokens", responses={**MESSAGES_ERRORS, **answers(openapi.TokenCount)})
async def count_tokens(body: CountRequest, request: Request) -> Response:
    gateway = request.app.state.gateway
    count = await placed(request, body.model, lambda _: gateway.count(body.for_chat()))
    return JSONResponse({"input_tokens": count})


@open_router.get("/health", responses=answers(openapi.Health))
async def health(request: Request) -> Response:
    """Status 200 while the gateway lives; the body says which models can be used."""
    models = request.app.state.gateway.models()
    if request.state.caller is None:
        return JSONResponse({"status": "ok"})
    coverage = [_coverage(model) for model in models]
    return JSONResponse({"status": "ok", "complete": any(model.complete for model in models), "models": coverage})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _coverage(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "complete": model.complete,
        "blocks": model.blocks,
        "missing": [f"{start}:{end}" for start, end in model.missing],
        "servers": len(model.servers),
    }
