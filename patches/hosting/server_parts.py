"""Replacements of single functions of upstream's server."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


def announcing_the_model(original: Callable[..., None]) -> Callable[..., None]:
    """The announcer's `__init__`, which also tells the DHT what our directory wants to know of the model."""

    def initialise(self: Any, module_uids: Any, dht: Any, *args: Any, block_config: Any, **kwargs: Any) -> None:
        context = getattr(block_config, "max_position_embeddings", None) or 0
        dht.describe(block_config.num_hidden_layers, block_config.hidden_size, context)
        original(self, module_uids, dht, *args, block_config=block_config, **kwargs)

    return initialise


def check_direct_reachability(**network: Any) -> bool:
    """True: peers find a way to each other by themselves, directly or through a router of the swarm."""
    return True


def validate_reachability(peer_id: Any, **patience: Any) -> None:
    """Nothing: no service outside of the swarm is asked whether a server can be reached."""


def attach_to_dht(cls: type, /, dht: Any, await_ready: bool = False, **kwargs: Any) -> None:
    """No service that tells others whether they can be reached; the directory and the routers do that."""


no_service: Any = classmethod(attach_to_dht)


def validate_version() -> None:
    """No service outside of the swarm is asked for a newer version: the patches fit this one."""
    log.info("upstream Petals, patched")
