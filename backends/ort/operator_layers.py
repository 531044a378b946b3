"""Layers of a family in the form of ONNX Runtime's own operators, while it is exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer
from torch import nn
from torch.onnx.ops import symbolic
from transformers.pytorch_utils import Conv1D

BLOCK = 32  # weights that share a scale where they are quantised


@contextlib.contextmanager
def products(model: nn.Module, bits: int | None) -> Iterator[None]:
    """Put such layers in the place of the loaded ones for a while.

    Args:
        bits: of the experts' weights, None for float32. Products with one matrix are quantised once they are a graph.
    """
    found = [
        (parent, name, child, form)
        for parent in model.modules()
        for name, child in parent.named_children()
        if not any(parameter.is_meta for parameter in child.parameters()) and (form := _form(child, bits))
    ]
    for parent, name, _, form in found:
        parent._modules[name] = form
    try:
        yield
    finally:
        for parent, name, child, _ in found:
            parent._modules[name] = child


def _form(layer: nn.Module, bits: int | None) -> nn.Module | None:
    if isinstance(layer, nn.Linear | Conv1D):
        return _Product(layer)
    # What transformers' decorator `use_experts_implementation` gives to experts.
    return _Experts(layer, bits) if hasattr(layer, "is_concatenated") else None


class _Product(nn.Module):
    """A linear layer as one product with a stored matrix, and a sum."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        matrix = layer.weight if isinstance(layer, Conv1D) else layer.weight.t().contiguous()
        self.matrix, self.bias = nn.Parameter(matrix, requires_grad=False), layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = symbolic("MatMul", (x, self.matrix), dtype=x.dtype, shape=(*x.shape[:-1], self.matrix.shape[1]))
        return out if self.bias is None else out + self.bias


class _Experts(nn.Module):
    """Experts as ONNX Runtime's operators MoE and QMoE, which compute only those that a token is sent to.

    The operators take logits of the experts, and make shares of the k highest by a softmax. The family's own router
    has settled the shares already, so the operator is given their logarithms.
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MoE
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.QMoE
    """

    def __init__(self, experts: Any, bits: int | None) -> None:
        super().__init__()
        up, down = experts.gate_up_proj, experts.down_proj
        up_bias, down_bias = (experts.gate_up_proj_bias, experts.down_proj_bias) if experts.has_bias else (None, None)
        if experts.is_transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        if experts.is_concatenated:
            up, up_bias = _interleaved(up), None if up_bias is None else _interleaved(up_bias)
        self.up, self.down = (_weights(x, bits) for x in (up, down))
        self.up_bias, self.down_bias, self.count = up_bias, down_bias, len(up)
        gate = {"activation_alpha": 1.0, "activation_beta": 0.0}
        if hasattr(experts, "limit"):  # gpt_oss
            gate = {"activation_alpha": experts.alpha, "activation_beta": 1.0, "swiglu_limit": experts.limit}
        self.operator, form = "com.microsoft::MoE", {}
        if bits is not None:
            self.operator = "com.microsoft::QMoE"
            form = {"expert_weight_bits": bits, "block_size": BLOCK, "weights_prepacked": 0, "accuracy_level": 4}
        self.gate: dict[str, int | float | str] = {
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            "normalize_routing_weights": 0,
            **gate,
            **form,
        }

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        shares = torch.zeros(hidden.shape[0], self.count, dtype=weights.dtype).scatter(1, index, weights)
        logits = torch.where(shares > 0, shares.log(), torch.full((), -1e4))
        inputs = (hidden, logits, *self.up, self.up_bias, *self.down, self.down_bias)
        gate: dict[str, Any] = {**self.gate, "k": index.shape[1]}
        out = symbolic(self.operator, inputs, gate, dtype=hidden.dtype, shape=hidden.shape, version=1)
        # ONNX Runtime 1.31 lays the result over `hidden` where nothing else needs that, and clears it before it reads.
        total = shares.sum(-1, keepdim=True)
        return torch.where(total > 0, out * total, hidden)


def _weights(experts: torch.Tensor, bits: int | None) -> nn.ParameterList:
    """`[experts, rows, columns]` as they are, or packed as MatMulNBits keeps each, and their scales."""
    found = [experts.contiguous()]
    if bits is not None:
        settings = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=bits)
        quantise = DefaultWeightOnlyQuantizer(settings).qbits_block_quant
        pairs = [quantise(matrix.t().contiguous().numpy())[:2] for matrix in experts]
        packed, scales = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
        found = [packed.flatten(2), scales]
    return nn.ParameterList(nn.Parameter(x, requires_grad=False) for x in found)


def _interleaved(rows: torch.Tensor) -> torch.Tensor:
    """Gate and up by turns, which lay one after the other."""
    return rows.reshape(len(rows), 2, -1, *rows.shape[2:]).transpose(1, 2).flatten(1, 2)
