"""Routes of monitoring: whether the gateway lives, and its figures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, PlainTextResponse, Response

from openai_api.http.scopes import OPEN, scoped
from openai_api.protocol import openapi
from openai_api.protocol.openapi import answers
from openai_api.routes.state import MaybeCaller, State
from swarm import ServedModel

router = APIRouter(responses=openapi.errors(), route_class=scoped("console"))
open_router = APIRouter(responses=openapi.errors(), route_class=scoped(OPEN))


@open_router.get("/health", responses=answers(openapi.Health))
async def health(state: State, caller: MaybeCaller) -> Response:
    """Status 200 while the gateway lives; the body says which models can be used."""
    models = state.gateway.models()
    if caller is None:
        return JSONResponse({"status": "ok"})
    coverage = [_coverage(model) for model in models]
    return JSONResponse({"status": "ok", "complete": any(model.complete for model in models), "models": coverage})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(state: State) -> Response:
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _coverage(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "complete": model.complete,
        "blocks": model.blocks,
        "missing": [f"{start}:{end}" for start, end in model.missing],
        "servers": len(model.servers),
    }
