"""Edge layers: token ids to the first block, and the last block to logits, which upstream leaves to its clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from backends.upstream.info import PetalsModel


def tensors(model: PetalsModel, names: Sequence[str], device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """These tensors, read from their files."""
    found = []
    for name in names:
        with safe_open(model.folder.path / model.folder.weight_map[name], framework="pt") as file:
            found.append(file.get_tensor(name).to(device=device, dtype=dtype))
    return found


class PetalsHead(nn.Module):
    """Token ids `[tokens]` to hidden states `[tokens, hidden]`."""

    def __init__(self, model: PetalsModel, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        embedding, *norm = tensors(model, model.head, device, dtype)
        self.embedding = nn.Embedding.from_pretrained(embedding)  # type: ignore[no-untyped-call]  # torch has no types for it
        self.norm = _layer_norm(norm, model.config) if norm else nn.Identity()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.embedding(ids))
        return out


class PetalsTail(nn.Module):
    """Hidden states `[rows, hidden]` through the final norm, and on to logits `[rows, vocab]`."""

    def __init__(self, model: PetalsModel, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        *norm, head = tensors(model, model.tail, device, dtype)
        if len(norm) == 2:
            self.norm: nn.Module = _layer_norm(norm, model.config)
        else:
            self.norm = LlamaRMSNorm(model.config.hidden_size, eps=model.config.rms_norm_eps)
            self.norm.weight = nn.Parameter(norm[0], requires_grad=False)
        self.head = nn.Parameter(head, requires_grad=False)

    def logits(self, final: torch.Tensor) -> torch.Tensor:
        """From what `norm` gives."""
        return nn.functional.linear(final, self.head)


def _layer_norm(parameters: Sequence[torch.Tensor], config: Any) -> nn.LayerNorm:
    weight, bias = parameters
    norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
    norm.weight, norm.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return norm
