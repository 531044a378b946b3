"""In the place of `petals.utils.peft`: LoRA adapters, without any.

Upstream's needs peft, bitsandbytes and scipy to be imported at all, which nothing else here does. So they are left
out, and adapters are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_REFUSED = "LoRA adapters are not provided for: upstream needs peft and bitsandbytes for them"


@contextmanager
def using_adapter(active_adapter: str | None) -> Iterator[None]:
    """Compute without an adapter. Raises: ValueError: one is asked for."""
    if active_adapter:
        raise ValueError(f"{active_adapter}: {_REFUSED}")
    yield


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(_REFUSED)
