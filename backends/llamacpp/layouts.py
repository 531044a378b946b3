"""Layouts: llama.cpp's structures (`include/llama.h`), as far as used, and how to tell which version is there.

Parameters change from version to version without the library saying so. What it gives as defaults is compared with
what the layouts known here would hold, and an unknown one is refused rather than written to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

EvalCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Opaque(ctypes.Structure):
    """Room for a structure of which only some places are known; larger than any version of it."""

    _fields_ = (("words", ctypes.c_uint64 * 128),)

    def put(self, offset: int, value: Any) -> None:
        ctypes.memmove(ctypes.addressof(self) + offset, ctypes.addressof(value), ctypes.sizeof(value))


class LlamaBatch(ctypes.Structure):
    """`llama_batch`: either `token` or `embd` is given."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.c_void_p),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
    )


_BEFORE: tuple[tuple[str, Any], ...] = (
    ("n_ctx", ctypes.c_uint32),
    ("n_batch", ctypes.c_uint32),
    ("n_ubatch", ctypes.c_uint32),
    ("n_seq_max", ctypes.c_uint32),
    ("n_rs_seq", ctypes.c_uint32),
    ("n_outputs_max", ctypes.c_uint32),
    ("n_outputs_max_per_seq", ctypes.c_uint32),
    ("n_threads", ctypes.c_int32),
    ("n_threads_batch", ctypes.c_int32),
    ("kinds", ctypes.c_int * 5),  # of context, RoPE scaling, pooling, attention, flash attention
    ("rope", ctypes.c_uint32 * 8),
    ("cb_eval", ctypes.c_void_p),
    ("cb_eval_user_data", ctypes.c_void_p),
    ("type_k", ctypes.c_int),
    ("type_v", ctypes.c_int),
)
_AFTER: tuple[tuple[str, Any], ...] = (
    ("abort_callback", ctypes.c_void_p),
    ("abort_callback_data", ctypes.c_void_p),
    ("embeddings", ctypes.c_bool),
    ("offload_kqv", ctypes.c_bool),
    ("no_perf", ctypes.c_bool),
    ("op_offload", ctypes.c_bool),
    ("swa_full", ctypes.c_bool),
    ("kv_unified", ctypes.c_bool),
    ("rest", ctypes.c_uint64 * 64),
)


class ContextParams(ctypes.Structure):
    """`llama_context_params` as in llama-cpp-python 0.3.36."""

    _fields_ = _BEFORE + _AFTER


class ContextParamsWithCache(ctypes.Structure):
    """The same as of build 11549: with the size of a cache of experts."""

    _fields_ = (*_BEFORE, ("moe_cache_size", ctypes.c_size_t), *_AFTER)


_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "cb_eval": None,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
}
LAYOUTS: Sequence[type[ctypes.Structure]] = (ContextParams, ContextParamsWithCache)


def fitting(defaults: bytes) -> Any | None:
    """The parameters of a context in the layout that these bytes have; None where it is unknown."""
    for layout in LAYOUTS:
        candidate = layout.from_buffer_copy(defaults[: ctypes.sizeof(layout)])
        if all(getattr(candidate, name) == value for name, value in _DEFAULTS.items()):
            return candidate
    return None


# In `llama_model_params` the places of these two have not changed since devices could be chosen.
DEVICES_AT, GPU_LAYERS_AT = 0, 16
