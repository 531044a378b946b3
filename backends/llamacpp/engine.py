"""A context of llama.cpp over the file of a span: packed tokens in, hidden states or logits out."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.llamacpp import layouts
from backends.llamacpp.library import Library, last_error
from backends.stage import Array, BackendError

BATCH = 512  # tokens computed at once
OUTPUTS = 64  # of which logits are given at once: llama.cpp makes room for them in advance
SEQUENCES = 64  # sessions that are kept apart; each may want an output at once
_NO_SLOT = 1
FLASH = 4  # place of the kind of attention among the kinds of parameters
TYPES = {"float32": 0, "float16": 1, "q8_0": 8}  # of KV caches, by their number in ggml


class LlamaModel:
    """The file of a span, loaded."""

    def __init__(self, library: Library, path: str, devices: Sequence[int], blocks: int) -> None:
        """
        Args:
            devices: handles of GPUs, each of which gets a part; none: the CPU computes.
            blocks: how many of the last ones go there; the head counts as one, and stays on the CPU in a span that
                does not need it.

        Raises:
            BackendError: llama.cpp does not take it.
        """
        self.library = library
        params = library.llama_model_default_params()
        self._devices = (ctypes.c_void_p * (len(devices) + 1))(*devices, None)
        params.put(layouts.DEVICES_AT, ctypes.c_void_p(ctypes.addressof(self._devices)))
        params.put(layouts.GPU_LAYERS_AT, ctypes.c_int32(blocks if devices else 0))
        self.handle: int | None = library.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise BackendError(f"llama.cpp cannot load {path}: {last_error()}")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.llama_model_free(self.handle)


class LlamaEngine:
    """A context of llama.cpp that runs packed tokens over the file of a span.

    Args:
        width: of hidden states.
        vocabulary: entries of the file's head.
        layer: the block of the file whose input is wanted; None: logits or final hidden states are.
        marked: whether that can be asked for; otherwise a callback sees every node of the graph.
        tokens: room of the KV cache, over all sequences.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        width: int,
        vocabulary: int,
        layer: int | None,
        marked: bool,
        tokens: int,
        threads: int,
        kv: str,
        offload: bool,
        sequences: int = SEQUENCES,
    ) -> None:
        self.model, self._library = model, model.library
        self.width, self._vocabulary, self._layer, self._marked = width, vocabulary, layer, marked
        self.enter: int | None = None  # the callback puts the input of this block in place of what was computed
        self.leave = layer  # and takes the input of this one
        self._embeddings = False
        self._entering: Array | None = None
        self._taken: Array | None = None
        params = self._library.context_params()
        params.n_ctx = tokens
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = sequences
        params.n_outputs_max = OUTPUTS
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        params.type_k = params.type_v = TYPES[kv]
        params.offload_kqv = offload
        if kv == "float32":
            params.kinds[FLASH] = 0  # on CPUs flash attention rounds to 16 bits whatever it is given
        if not marked:
            # Held weakly, or this object would hold itself, and with it the span's memory and file when it is let go.
            seen: Any = weakref.WeakMethod(self._on_node)
            self._callback = layouts.EvalCallback(lambda *node: seen()(*node))
            params.cb_eval = ctypes.cast(self._callback, ctypes.c_void_p)
        self._handle = self._library.new_context(model.handle or 0, params)
        if not self._handle:
            raise MemoryError(f"llama.cpp cannot make room for {tokens} tokens: {last_error()}")
        if marked and layer is not None:
            self._library.set_layer_input(self._handle, layer, True)
        self._memory = self._library.llama_get_memory(self._handle)
        self._batch = self._arrays()

    def _arrays(self) -> layouts.LlamaBatch:
        self._tokens = np.zeros(BATCH, np.int32)
        self._positions = np.zeros(BATCH, np.int32)
        self._wanted = np.zeros(BATCH, np.int8)
        self._ids = np.zeros(BATCH, np.int32)
        self._ones = np.ones(BATCH, np.int32)
        self._lists = self._ids.ctypes.data + 4 * np.arange(BATCH, dtype=np.uint64)
        batch = layouts.LlamaBatch()
        batch.pos, batch.logits = self._positions.ctypes.data, self._wanted.ctypes.data
        batch.n_seq_id, batch.seq_id = self._ones.ctypes.data, self._lists.ctypes.data
        return batch

    def run(self, inputs: Array, positions: Array, ids: Array | np.int32, wanted: Array, hidden: bool = False) -> Array:
        """Compute at most `BATCH` tokens and extend their sequences.

        Args:
            inputs: `[tokens]` int32 ids, or `[tokens, width]` float32 hidden states.
            positions, ids: of each token, its place and its sequence; one id where all are of one sequence.
            wanted: `[tokens]` flags, at most `OUTPUTS` set: of which tokens logits are given. In a span that is not the
                tail, all tokens' hidden states are.
            hidden: hidden states after the final norm instead of logits; at most `OUTPUTS` tokens.

        Raises:
            MemoryError: the KV cache has no room; nothing has changed.
            RuntimeError: llama.cpp failed.
        """
        n = len(positions)
        self._positions[:n], self._ids[:n] = positions, ids
        self._wanted[:n] = wanted
        batch = self._batch
        batch.n_tokens = n
        if inputs.ndim == 1:
            self._tokens[:n] = inputs
            batch.token, batch.embd = self._tokens.ctypes.data, None
        else:
            inputs = np.ascontiguousarray(inputs, np.float32)
            batch.token, batch.embd = None, inputs.ctypes.data
            self._entering = inputs
        if hidden != self._embeddings and self._layer is None:
            self._library.llama_set_embeddings(self._handle, hidden)
            self._embeddings = hidden
        self._taken = None
        status = self._library.llama_decode(self._handle, batch)
        if status == _NO_SLOT:
            raise MemoryError(f"the KV cache has no room for {n} more tokens")
        if status != 0:
            raise RuntimeError(f"llama.cpp could not compute a batch ({status}): {last_error()}")
        return self._result(n, hidden)

    def _result(self, tokens: int, hidden: bool) -> Array:
        if self.leave is not None:
            if not self._marked:
                assert self._taken is not None, "the graph has no such node"
                return self._taken
            return self._copy(self._library.get_layer_input(self._handle, self._layer), tokens, self.width)
        if hidden:  # llama.cpp then gives all
            final = self._copy(self._library.llama_get_embeddings(self._handle), tokens, self.width)
            some: Array = final[self._wanted[:tokens] != 0]
            return some
        outputs = int(self._wanted[:tokens].sum())
        return self._copy(self._library.llama_get_logits(self._handle), outputs, self._vocabulary)

    @staticmethod
    def _copy(address: int, rows: int, width: int) -> Array:
        array = np.empty((rows, width), np.float32)
        if rows:
            ctypes.memmove(array.ctypes.data, address, array.nbytes)
        return array

    def _on_node(self, node: int, asked: bool, _: Any) -> bool:
        """llama.cpp asks whether a node is to be seen, and shows it once it is computed. False then ends the graph."""
        if asked:
            name = self._library.ggml_get_name(node)
            return name in (_output(self.enter), _output(self.leave))
        if self._library.ggml_get_name(node) == _output(self.leave):
            taken = np.empty(self._library.ggml_nbytes(node) // 4, np.float32)
            self._library.ggml_backend_tensor_get(node, taken.ctypes.data, 0, taken.nbytes)
            self._taken = taken.reshape(-1, self.width)
            return False
        assert self._entering is not None
        self._library.ggml_backend_tensor_set(node, self._entering.ctypes.data, 0, self._entering.nbytes)
        return True

    def forget(self, sequence: int, start: int) -> bool:
        """Drop a sequence from position `start` on. False: its state cannot go back."""
        return bool(self._library.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.llama_free(self._handle)
            self._handle = None


def _output(block: int | None) -> bytes:
    """The node whose value is the input of this block."""
    return b"" if block is None else b"l_out-%d" % (block - 1)


def chunks(lengths: Sequence[int], outputs: Sequence[int], most: int = BATCH) -> list[tuple[int, int]]:
    """Parts of packed rows, as ranges of at most `most` tokens, that llama.cpp takes at once."""
    wanted = np.concatenate([np.arange(n) >= n - o for n, o in zip(lengths, outputs, strict=True)])
    parts, start, count = [], 0, 0
    for at, flag in enumerate(wanted):
        if at - start >= most or (flag and count >= OUTPUTS):
            parts.append((start, at))
            start, count = at, 0
        count += int(flag)
    return [*parts, (start, len(wanted))]
