"""Models: how models are listed; those of the swarm, and those that it could serve. Everything here is pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from swarm import ServedModel
from swarm.models.catalogue import CATALOGUE


def described(model: ServedModel, created: int) -> dict[str, Any]:
    """A model of the swarm, with fields of our own after OpenAI's four.

    `spans` says which blocks each server computes; `max_model_len` is what vLLM calls the context length.
    """
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "swarm",
        "status": "ready" if model.complete else "incomplete",
        "context_length": model.context_length,
        "max_model_len": model.context_length,
        "complete": model.complete,
        "blocks": model.blocks,
        "missing": [f"{start}:{end}" for start, end in model.missing],
        "spans": [
            {"server": server.name, "blocks": f"{server.start}:{server.end}", "state": server.state}
            for server in model.servers
        ],
    }


def catalogue(served: Collection[str], created: int) -> list[dict[str, Any]]:
    """The models of the catalogue that no server holds: `swarm-server NAME` would begin to."""
    return [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": entry.repo.partition("/")[0],
            "status": "available",
            "complete": False,
            "repo": entry.repo,
            "size": entry.size,
            "licence": entry.licence,
            "gated": entry.gated,
        }
        for name, entry in CATALOGUE.items()
        if name not in served and entry.repo not in served
    ]
