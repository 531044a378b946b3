"""The KV caches of sessions, in upstream's `MemoryCache`.

Upstream makes a cache of a fixed length when a client opens a session. A stage is not told how long a session will get,
so here a cache that is full is replaced by one of twice its length.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import chain
from typing import cast

import torch
from petals.data_structures import Handle, InferenceMetadata
from petals.server.backend import TransformerBackend
from petals.server.memory_cache import MemoryCache

from backends.stage import Span
from patches.codec.nested import nested_pack
from patches.concurrency.loops import RemoteExpertWorker
from patches.concurrency.processes import as_handler

STEP = 128  # tokens; lengths of caches are its multiples


class PetalsKVSession:
    """One session's caches for the blocks that it runs.

    Attributes:
        length: tokens in them.
    """

    def __init__(self, span: Span, backends: Sequence[TransformerBackend], memory: MemoryCache) -> None:
        self.span = span
        self.length = 0
        self._backends = backends
        self._memory = memory
        self._capacity = 0
        self._handles: Sequence[Sequence[Handle]] = ()
        self._held = AsyncExitStack()

    def reserve(self, length: int) -> None:
        """Make room for a sequence of so many tokens.

        Raises:
            RuntimeError: as torch does where the device has no room. The session has not changed.
        """
        if length <= self._capacity:
            return
        capacity = -(-max(length, 2 * self._capacity) // STEP) * STEP
        descriptors = [backend.get_inference_cache_descriptors(1, capacity) for backend in self._backends]
        held = AsyncExitStack()

        async def allocate() -> Sequence[Handle]:
            with as_handler():
                return await held.enter_async_context(self._memory.allocate_cache(*chain(*descriptors), timeout=0))

        handles = cast(Sequence[Handle], RemoteExpertWorker.run_coroutine(allocate()))
        try:
            self._copy(handles)
        except BaseException:
            RemoteExpertWorker.run_coroutine(held.aclose())
            raise
        before, self._held = self._held, held
        RemoteExpertWorker.run_coroutine(before.aclose())
        self._handles, self._capacity = nested_pack(handles, descriptors), capacity

    def _copy(self, handles: Sequence[Handle]) -> None:
        old = tuple(chain(*self._handles))
        with torch.inference_mode(), self._memory.use_cache(*handles, *old) as tensors:
            # Keys and values by turns; of keys the last dimension is that of tokens, of values the last but one.
            for index, source in enumerate(tensors[len(handles) :]):
                axis = 3 if index % 2 == 0 else 2
                kept = source.narrow(axis, 0, self.length)
                tensors[index].narrow(axis, 0, self.length).copy_(kept)

    def metadata(self) -> tuple[InferenceMetadata, ...]:
        """What each block's backend is told to go on with."""
        pairs = zip(self._backends, self._handles, strict=True)
        return tuple(InferenceMetadata(b.name, self.length, tuple(handles), "") for b, handles in pairs)

    def close(self) -> None:
        """Give the caches back."""
        RemoteExpertWorker.run_coroutine(self._held.aclose())
        self._handles, self._capacity, self.length = (), 0, 0
        with self._memory.use_cache():
            pass  # upstream drops what was given back when it is next used
