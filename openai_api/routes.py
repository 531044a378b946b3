"""The routes of the gateway."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from openai_api import answer as answers
from openai_api.answer import Answer
from openai_api.attendance import EventStream, attended
from openai_api.schemas import ChatRequest, CompletionRequest, ErrorBody, Generating
from swarm import ServedModel

router = APIRouter(responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}})


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """The models of the swarm, those whose blocks are all served first."""
    gateway = request.app.state.gateway
    models = [_model(model, gateway.started) for model in gateway.models()]
    return JSONResponse({"object": "list", "data": models})


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, request: Request) -> Response:
    gateway = request.app.state.gateway
    return JSONResponse(_model(gateway.model(model), gateway.started))


@router.post("/v1/completions")
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    return await _answered(body, request)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    return await _answered(body, request)


@router.get("/health")
async def health(request: Request) -> Response:
    """Status 200 while the gateway lives; the body says which models can be used."""
    models = request.app.state.gateway.models()
    if not request.state.trusted:
        return JSONResponse({"status": "ok"})
    coverage = [_coverage(model) for model in models]
    return JSONResponse({"status": "ok", "complete": any(model.complete for model in models), "models": coverage})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _answered(body: Generating, request: Request) -> Response:
    """Generate, unless the client leaves. Errors before the first token still have a status of their own."""
    state = request.app.state
    if not body.stream:
        return JSONResponse(await attended(_whole(body, request), request.receive, state.closing))
    events = _events(body, request)
    try:
        first = await attended(anext(events), request.receive, state.closing)
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events, state.closing, request.state.request_id)


async def _whole(body: Generating, request: Request) -> dict[str, Any]:
    state = request.app.state
    async with state.room.place():
        answer = await _prepared(body, request)
        return await answers.whole(answer, state.gateway.engine, state.metrics)


async def _events(body: Generating, request: Request) -> AsyncGenerator[bytes, None]:
    state = request.app.state
    async with state.room.place():
        answer = await _prepared(body, request)
        async with aclosing(answers.events(answer, state.gateway.engine, state.metrics)) as events:
            async for event in events:
                yield event


async def _prepared(body: Generating, request: Request) -> Answer:
    state = request.app.state
    answer: Answer
    if isinstance(body, ChatRequest):
        answer = await state.gateway.chat(body)
    else:
        answer = await state.gateway.completion(body)
    if state.console is not None:
        state.console.remember(answer)
    state.metrics.prompted.labels(answer.model).inc(answer.prompt_tokens)
    return answer


def _model(model: ServedModel, created: int) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "swarm",
        "context_length": model.context_length,
        "complete": model.complete,
    }


def _coverage(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "complete": model.complete,
        "blocks": model.blocks,
        "missing": [f"{start}:{end}" for start, end in model.missing],
        "servers": len(model.servers),
    }
