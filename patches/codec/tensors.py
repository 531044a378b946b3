"""Descriptions of tensors that are still to be made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patches.network.messages import CompressionType


@dataclass(frozen=True)
class TensorDescriptor:
    """Size, dtype and place of a tensor; `None` in the size stands for a batch of any size."""

    size: tuple[int | None, ...]
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    requires_grad: bool = False
    compression: int = CompressionType.NONE

    @property
    def shape(self) -> tuple[int | None, ...]:
        return self.size

    def numel(self) -> int:
        """Raises: TypeError: the size is not known."""
        return math.prod(self.size)  # type: ignore[arg-type]

    def make_zeros(self) -> torch.Tensor:
        return torch.zeros(self.size, dtype=self.dtype, device=self.device)  # type: ignore[arg-type]


class BatchTensorDescriptor(TensorDescriptor):
    """Of a tensor whose first dimension is the batch: `size` is that of one element."""

    def __init__(self, *size: Any, **description: Any) -> None:
        if len(size) == 1 and isinstance(size[0], Sequence):
            size = tuple(size[0])
        super().__init__((None, *size), **description)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor, compression: int = CompressionType.NONE) -> BatchTensorDescriptor:
        """Numbers that are no floating point are never compressed."""
        if not tensor.is_floating_point():
            compression = CompressionType.NONE
        return cls(
            *tensor.shape[1:],
            dtype=tensor.dtype,
            device=tensor.device,
            requires_grad=tensor.requires_grad,
            compression=compression,
        )
