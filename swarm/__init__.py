"""Run a language model that is too large for one machine across several.

from swarm import SwarmClient

with SwarmClient(join="swarm1:...") as client:
    print(client.generate("smollm2-135m", "The capital of France is", max_new_tokens=16))
"""

from swarm.client.actions import Notice, Routed
from swarm.client.async_client import AsyncClientSession, AsyncSwarmClient
from swarm.client.base import SamplingOptions, ServedModel
from swarm.client.client import ClientSession, SwarmClient
from swarm.errors import BadRequest, Expelled, Overloaded, SessionFailed, SwarmError, Unavailable, UnknownModel
from swarm.sampling import Sampling
from swarm.version import __version__

__all__ = [
    "AsyncClientSession",
    "AsyncSwarmClient",
    "BadRequest",
    "ClientSession",
    "Expelled",
    "Notice",
    "Overloaded",
    "Routed",
    "Sampling",
    "SamplingOptions",
    "ServedModel",
    "SessionFailed",
    "SwarmClient",
    "SwarmError",
    "Unavailable",
    "UnknownModel",
    "__version__",
]
