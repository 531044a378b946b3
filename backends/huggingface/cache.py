"""KV caches: one `TorchKVSession` per session, and the two faces of it that a family's forward may be given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from backends.stage import BackendError, Span

_FIRST_CAPACITY = 64


class NotPackedError(Exception):
    """The family needs something that a packed batch of several sessions does not give it."""


class Growing:
    """Keys and values of one layer, `[1, heads, tokens, width]` each, in buffers that double when they are full."""

    __slots__ = ("capacity", "keys", "length", "values")

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self.length = self.capacity = 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens; give all keys and values so far, as views."""
        start = self.length
        end = start + keys.shape[-2]
        if end > self.capacity:
            self._grow(end, keys, values)
        assert self.keys is not None and self.values is not None
        self.keys.narrow(-2, start, end - start).copy_(keys)
        self.values.narrow(-2, start, end - start).copy_(values)
        self.length = end
        return self.keys.narrow(-2, 0, end), self.values.narrow(-2, 0, end)

    def _grow(self, needed: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        capacity = max(_FIRST_CAPACITY, self.capacity)
        while capacity < needed:
            capacity *= 2
        grown = []
        for old, new in ((self.keys, keys), (self.values, values)):
            buffer = new.new_empty((*new.shape[:-2], capacity, new.shape[-1]))
            if old is not None:
                buffer.narrow(-2, 0, self.length).copy_(old.narrow(-2, 0, self.length))
            grown.append(buffer)
        self.keys, self.values = grown
        self.capacity = capacity

    def tensors(self) -> Iterator[torch.Tensor]:
        yield from (buffer for buffer in (self.keys, self.values) if buffer is not None)


class TorchKVSession:
    """Torch KV session: the sub-range that it runs, its length, and the state of each layer.

    `length` is the number of tokens that whole forwards have added. While one runs, layers are ahead of it; `revert`
    takes them back if it fails.
    """

    def __init__(self, span: Span, single: Callable[[TorchKVSession], SingleCache] | None = None) -> None:
        self.span = span
        self.length = 0
        self.layers: dict[int, Growing] = {}
        self.cache = single(self) if single is not None else None

    def layer(self, index: int) -> Growing:
        found = self.layers.get(index)
        if found is None:
            found = self.layers[index] = Growing()
        return found

    def prepare(self) -> None:
        """Remember what `revert` needs."""
        if self.cache is not None:
            self.cache.save()

    def revert(self) -> None:
        """Take back what the running forward has added."""
        for layer in self.layers.values():
            layer.length = self.length
        if self.cache is not None:
            self.cache.restore()

    def commit(self, tokens: int) -> None:
        self.length += tokens
        if self.cache is not None:
            self.cache.saved = []

    def truncate(self, length: int) -> None:
        """Forget the tokens from `length` on.

        Raises:
            BackendError: a recurrent layer has no way back.
        """
        if self.cache is not None:
            self.cache.crop(self.length - length)
        for layer in self.layers.values():
            layer.length = length
        self.length = length

    def nbytes(self) -> int:
        own = sum(tensor.nbytes for layer in self.layers.values() for tensor in layer.tensors())
        return own + (self.cache.nbytes() if self.cache is not None else 0)


class PackedCache:
    """The cache of a packed batch. It takes each row's new keys and values and makes no claim on lengths or masks.

    With `gather`, it gives back every row's whole keys and values one after the other, for families that cache
    something smaller and expand it before they attend; otherwise the attention function stores and reads them.
    `sdpa` tells that function whether the family's attention is plain `scaled_dot_product_attention`, and `windowed`
    which layers transformers' own cache would cut to a window.
    """

    is_compileable = False
    is_sliding = (False,)

    def __init__(
        self, rows: Sequence[tuple[TorchKVSession, int]], gather: bool, sdpa: bool, windowed: frozenset[int]
    ) -> None:
        self.rows, self.gather, self.sdpa, self.windowed = rows, gather, sdpa, windowed
        self.layer = -1
        self.keys: torch.Tensor | None = None
        self.masks: dict[Any, Any] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.layer = layer_idx
        if self.gather:
            keys, values, at = [], [], 0
            for session, tokens in self.rows:
                more = session.layer(layer_idx).append(
                    key_states.narrow(-2, at, tokens), value_states.narrow(-2, at, tokens)
                )
                keys.append(more[0])
                values.append(more[1])
                at += tokens
            if len(keys) == 1:
                key_states, value_states = keys[0], values[0]
            else:
                key_states, value_states = torch.cat(keys, -2), torch.cat(values, -2)
        self.keys = key_states
        return key_states, value_states

    # A mask of the whole batch is never made, and positions are always given, so these only have to be there.
    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1


class _Full(CacheLayerMixin):  # type: ignore[misc]
    """An attention layer that keeps all keys and values, also where the family looks back over a window only."""

    def __init__(self, growing: Growing) -> None:
        super().__init__()
        self.growing = growing
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: buffers are made by the first update."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.growing.append(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.growing.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.growing.length

    def get_max_length(self) -> int:
        return -1


class _Elsewhere(_Full):
    """A layer of another span: as long as the session, and empty."""

    def __init__(self, session: TorchKVSession) -> None:
        super().__init__(Growing())
        self.session = session

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.session.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.session.length


class SingleCache(Cache):  # type: ignore[misc]
    """The cache of one session as transformers' own, for families that have to run one row at a time.

    Attention layers are `Growing`, so that they can be truncated; recurrent layers are the family's own.
    """

    def __init__(self, session: TorchKVSession, layers: list[Any], inside: range) -> None:
        made: list[Any] = []
        for index, layer in enumerate(layers):
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                made.append(layer)
            elif index in inside:
                made.append(_Full(session.layer(index)))
            else:
                made.append(_Elsewhere(session))
        own = [index for index in inside if not isinstance(made[index], _Full)]
        for index, layer in enumerate(made):
            # A recurrent layer of another span stands for its like here: only whether it has a past is asked of it.
            alike = next((i for i in own if type(made[i]) is type(layer)), None)
            if index not in inside and alike is not None:
                made[index] = made[alike]
        super().__init__(layers=made)
        self.session = session
        self.own = own
        self.saved: list[Any] = []

    def save(self) -> None:
        self.saved = [copy.deepcopy(vars(self.layers[index])) for index in self.own]

    def restore(self) -> None:
        if self.saved:
            for index, state in zip(self.own, self.saved, strict=True):
                vars(self.layers[index]).update(state)
        self.saved = []

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove and not self.can_crop:
            raise BackendError(
                "this model keeps a running state, which cannot go back to an earlier token; "
                "free the session and send its tokens again"
            )
        for index in self.own:
            if tokens_to_remove:
                self.layers[index].crop(-tokens_to_remove)

    @property
    def can_crop(self) -> bool:
        return all(
            isinstance(self.layers[index], DynamicLayer)
            and not isinstance(self.layers[index], LinearAttentionCacheLayerMixin | DynamicSlidingWindowLayer)
            for index in self.own
        )

    def nbytes(self) -> int:
        return sum(tensor.nbytes for index in self.own for tensor in _tensors(vars(self.layers[index])))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
