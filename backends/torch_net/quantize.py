"""Quantisation: the linear layers of blocks in 8 bits (LLM.int8, https://arxiv.org/abs/2208.07339) or 4 bits (NF4,
https://arxiv.org/abs/2305.14314) with bitsandbytes. Embedding, norms and LM head stay as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn

from backends.stage import BackendError

METHODS = ("int8", "nf4")
_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # of a weight; NF4 has a scale in float32 for each 64
_OUTLIER = 6.0  # the threshold of the LLM.int8 paper


def require(method: str | None, device: torch.device) -> None:
    """Raises:
    BackendError: the method is not known, or cannot be used here.
    """
    if method is None:
        return
    if method not in METHODS:
        raise BackendError(f"there is no quantisation {method!r}; take {' or '.join(METHODS)}")
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"--quantize {method} needs a CPU or a CUDA device, not {device}")
    if find_spec("bitsandbytes") is None:
        raise BackendError(f"--quantize {method} needs bitsandbytes: pip install layerswarm[quantize]")


def require_plain_cache(kv_dtype: str) -> None:
    """Raises: BackendError: a type of its own is asked for the KV cache."""
    if kv_dtype != "auto":
        raise BackendError(
            f"--kv-dtype {kv_dtype}: this backend keeps keys and values in its --dtype; take --backend llama_cpp"
        )


def require_use(method: str | None, blocks: list[nn.Module]) -> None:
    """Raises:
    BackendError: most of the blocks' weights are not in linear layers, so quantising would hardly shrink them.
    """
    if method is None:
        return
    total = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    linear = sum(layer.weight.numel() for block in blocks for layer in _linear_layers(block).values())
    if 2 * linear < total:
        raise BackendError(
            f"--quantize {method} shrinks linear layers, which hold only {100 * linear // total} % of these blocks' "
            "weights (experts of a mixture are not among them); leave it out and take fewer blocks"
        )


def shrinker(method: str | None, dtype: torch.dtype, device: torch.device) -> Callable[[nn.Module], None] | None:
    """What to do with each block once it is loaded on the CPU: quantise it and put it on the device."""
    if method is None:
        return None

    def shrink(block: nn.Module) -> None:
        for name, layer in _linear_layers(block).items():
            parent, _, last = name.rpartition(".")
            setattr(block.get_submodule(parent), last, _quantised(layer, str(method), dtype).to(device))
        block.to(device)

    return shrink


def held(block: nn.Module, dtype: torch.dtype, method: str | None) -> int:
    """Bytes that a block takes once it is loaded in `dtype` and shrunk."""
    total = sum(parameter.numel() for parameter in block.parameters()) * dtype.itemsize
    if method is None:
        return total
    linear = sum(layer.weight.numel() for layer in _linear_layers(block).values())
    return total - int(linear * (dtype.itemsize - _BYTES[method]))


def nbytes(module: nn.Module) -> int:
    """Bytes of the scales that bitsandbytes keeps beside a module's parameters."""
    total = 0
    for parameter in module.parameters():
        state = getattr(parameter, "quant_state", None)
        scales = [getattr(state, "absmax", None), getattr(state, "code", None), getattr(parameter, "SCB", None)]
        total += sum(scale.nbytes for scale in scales if isinstance(scale, torch.Tensor))
    return total


def _linear_layers(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in block.named_modules() if type(layer) is nn.Linear}


def _quantised(layer: nn.Linear, method: str, dtype: torch.dtype) -> nn.Module:
    # bitsandbytes says of every layer that it casts float32 input, which is what it is meant to do.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes as bnb

    size, bias, weight = (layer.in_features, layer.out_features), layer.bias is not None, layer.weight.data
    with torch.device("meta"):
        if method == "nf4":
            new = bnb.nn.Linear4bit(*size, bias=bias, compute_dtype=dtype, compress_statistics=False, quant_type="nf4")
        else:
            new = bnb.nn.Linear8bitLt(*size, bias=bias, has_fp16_weights=False, threshold=_OUTLIER)
    if method == "nf4":
        new.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, compress_statistics=False, quant_type="nf4", module=new
        )
    else:
        new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    new.bias = layer.bias
    quantised: nn.Module = new.eval()
    return quantised
