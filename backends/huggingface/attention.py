"""Attention over a packed batch: each row over the keys and values of its own session.

Two of transformers' public extension points carry it (https://huggingface.co/docs/transformers/attention_interface):
an attention function, and a mask function of the same name. The mask function makes no mask; it keeps the family's own
rule of which token may see which, and the attention function applies that rule to each row. So sliding windows and
chunks are what the family says, not what this file believes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from backends.huggingface.cache import NotPackedError, PackedCache
from backends.stage import BackendError

NAME = "swarm_packed"
Rule = Callable[[Any, Any, Any, Any], torch.Tensor]
Attention = tuple[torch.Tensor, torch.Tensor | None]

_running = threading.local()
_windows: dict[Any, int | None] = {}


class Visibility:
    """Visibility: which token may see which; the family's rule, and its window where it is a plain sliding window.

    `window` is 0 for all earlier tokens, w for the last w tokens including itself, None for any other rule.
    """

    __slots__ = ("rule", "window")

    def __init__(self, rule: Rule, window: int | None) -> None:
        self.rule, self.window = rule, window


class Running:
    """Names the batch that this thread's attention calls belong to."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __enter__(self) -> Any:
        _running.batch = self.batch
        return self.batch

    def __exit__(self, *error: object) -> None:
        _running.batch = None


def visibility(
    *,
    mask_function: Rule,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> Visibility:
    """Stands where transformers would make a mask tensor."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise NotPackedError("it masks single tokens")
    if mask_function is causal_mask_function:
        return Visibility(mask_function, 0)
    key = (local_size, _names(mask_function))
    if key not in _windows:
        _windows[key] = local_size if _is_window(mask_function, local_size, device) else None
    return Visibility(mask_function, _windows[key])


def _names(rule: Any) -> tuple[Any, ...]:
    """What a rule is made of: its name, and those of the rules that it combines."""
    parts = [cell.cell_contents for cell in getattr(rule, "__closure__", None) or ()]
    flat = [part for entry in parts for part in (entry if isinstance(entry, tuple | list) else (entry,))]
    return (getattr(rule, "__qualname__", repr(rule)), *(_names(part) for part in flat if callable(part)))


def _is_window(rule: Rule, size: int | None, device: torch.device | str) -> bool:
    """Whether a rule is a sliding window of this size, tried at the tokens where other rules would differ."""
    if not size:
        return False
    tried = [0, 1, size - 1, size, size + 1, 2 * size, 2 * size + 1, 3 * size + 2]
    query = torch.tensor(tried, device=device)[:, None]
    key = torch.arange(3 * size + 4, device=device)[None]
    seen = torch.broadcast_to(rule(0, 0, query, key), (len(query), key.shape[1]))
    return torch.equal(seen, (key <= query) & (key > query - size))


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> Attention:
    """Attend for every row of the running batch.

    Args:
        query: `[1, heads, tokens, width]`, all rows one after the other.
        key, value: `[1, kv_heads, tokens, width]`; the rows' whole keys and values where the batch gathers them.

    Returns:
        `[1, tokens, heads, width]` and None, as transformers' attention functions do.
    """
    batch = getattr(_running, "batch", None)
    if not isinstance(batch, PackedCache) or type(attention_mask) is not Visibility:
        raise NotPackedError("its attention is not masked in the usual way")
    if batch.keys is not key and not batch.gather:
        raise NotPackedError("it changes keys after they are cached")
    if kwargs.get("position_bias") is not None or kwargs.get("is_causal") is False:
        raise NotPackedError("its attention has a bias of its own")
    if attention_mask.window == 0 and batch.layer in batch.windowed:
        raise BackendError("its mask shows tokens that transformers' own cache has forgotten")
    batch.keys = None
    eager = not batch.sdpa or kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None
    attend = _attend_eager if eager else _attend_sdpa
    if len(batch.rows) == 1:
        session, tokens = batch.rows[0]
        if not batch.gather:
            key, value = session.layer(batch.layer).append(key, value)
        return attend(module, query, key, value, attention_mask, key.shape[2] - tokens, scaling, batch, kwargs), None
    out, at, seen = [], 0, 0
    for session, tokens in batch.rows:
        layer = session.layer(batch.layer)
        if batch.gather:
            keys, values = key.narrow(2, seen, layer.length), value.narrow(2, seen, layer.length)
            seen += layer.length
        else:
            keys, values = layer.append(key.narrow(2, at, tokens), value.narrow(2, at, tokens))
        past = layer.length - tokens
        out.append(
            attend(module, query.narrow(2, at, tokens), keys, values, attention_mask, past, scaling, batch, kwargs)
        )
        at += tokens
    return torch.cat(out, 1), None


def _attend_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: Visibility,
    past: int,
    scaling: float | None,
    batch: PackedCache,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    tokens, grouped = query.shape[2], query.shape[1] != keys.shape[1]
    keys, values, first = _cut(keys, values, seen, past)
    mask = _mask(batch, seen, past, tokens, first, keys)
    if grouped and (keys.device.type == "mps" or (mask is not None and keys.is_cuda)):
        # For a mask and grouped heads at once, CUDA has only the slow kernel; MPS may have none.
        groups = query.shape[1] // keys.shape[1]
        keys, values, grouped = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1), False
    causal = mask is None and tokens > 1
    out = scaled_dot_product_attention(query, keys, values, mask, 0.0, causal, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2)


def _attend_eager(
    module: nn.Module,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    seen: Visibility,
    past: int,
    scaling: float | None,
    batch: PackedCache,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """The family's own plain attention, for soft-capping, sinks and whatever else it has."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise NotPackedError("it has no plain attention function")
    keys, values, first = _cut(keys, values, seen, past)
    mask = _mask(batch, seen, past, query.shape[2], first, keys, additive=True)
    out: torch.Tensor = eager(module, query, keys, values, mask, scaling=scaling, dropout=0.0, **kwargs)[0]
    return out


def _cut(
    keys: torch.Tensor, values: torch.Tensor, seen: Visibility, past: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Leave out what lies before the window of the row's first token."""
    first = past + 1 - seen.window if seen.window else 0
    if first <= 0:
        return keys, values, 0
    length = keys.shape[2] - first
    return keys.narrow(2, first, length), values.narrow(2, first, length), first


def _mask(
    batch: PackedCache,
    seen: Visibility,
    past: int,
    tokens: int,
    first: int,
    keys: torch.Tensor,
    additive: bool = False,
) -> torch.Tensor | None:
    """The row's mask `[1, 1, tokens, keys]`, or None where every token sees all keys, or plain causality is enough."""
    total = past + tokens
    if seen.window is not None:
        if tokens == 1:
            return None
        if not additive and past == 0 and not (seen.window and total > seen.window):
            return None
    at = (seen, past, tokens, first, additive)
    if at not in batch.masks:
        device = keys.device
        query = torch.arange(past, total, device=device)[:, None]
        key = torch.arange(first, total, device=device)[None]
        if seen.window == 0:
            mask = key <= query
        elif seen.window:
            mask = (key <= query) & (key > query - seen.window)
        else:
            mask = torch.broadcast_to(seen.rule(0, 0, query, key), (tokens, total - first))
        if additive:
            lowest = torch.finfo(keys.dtype).min
            mask = torch.zeros(mask.shape, dtype=keys.dtype, device=device).masked_fill_(~mask, lowest)
        batch.masks[at] = mask[None, None]
    found: torch.Tensor = batch.masks[at]
    return found


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, visibility)
