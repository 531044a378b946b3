"""The base of upstream's `TransformerBackend`: a module, and how its inputs and outputs are laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patches.codec.nested import nested_flatten, nested_pack
from patches.codec.tensors import TensorDescriptor


@dataclass
class _Pool:
    """What `TransformerBackend` looks at in the pool that it replaces with its own."""

    max_batch_size: int | None


class ModuleBackend:
    """Module backend: runs a module forwards and backwards on flat lists of tensors.

    Args:
        args_schema, kwargs_schema, outputs_schema: descriptors of what the module takes and gives.
        max_batch_size: of a task, in tokens.
    """

    def __init__(
        self,
        name: str,
        module: torch.nn.Module,
        *,
        args_schema: Sequence[TensorDescriptor],
        kwargs_schema: Mapping[str, TensorDescriptor],
        outputs_schema: Sequence[TensorDescriptor],
        min_batch_size: int = 1,
        max_batch_size: int | None = None,
    ) -> None:
        self.name, self.module = name, module
        self.args_schema, self.kwargs_schema = tuple(args_schema), dict(kwargs_schema)
        self.outputs_schema = tuple(outputs_schema)
        self.forward_schema = (self.args_schema, self.kwargs_schema)
        self.backward_schema = (self.forward_schema, self.outputs_schema)
        self.forward_pool: Any = _Pool(max_batch_size)
        self.backward_pool: Any = _Pool(max_batch_size)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = nested_pack(inputs, self.forward_schema)
        with torch.no_grad():
            return tuple(nested_flatten(self.module(*args, **kwargs)))

    def backward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gradients with respect to the inputs, given the inputs and the gradients with respect to the outputs."""
        given, grads = nested_pack(inputs, self.backward_schema)
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in nested_flatten(given)]
            args, kwargs = nested_pack(leaves, self.forward_schema)
            outputs = tuple(nested_flatten(self.module(*args, **kwargs)))
            matching = [grad.to(out) for out, grad in zip(outputs, nested_flatten(grads), strict=True)]
            torch.autograd.backward(outputs, matching)
        return tuple(x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves)

    def get_info(self) -> dict[str, Any]:
        """What a client must know to send inputs that fit."""
        return {
            "forward_schema": self.forward_schema,
            "outputs_schema": self.outputs_schema,
            "keyword_names": tuple(self.kwargs_schema),
        }


def refuse_custom_models(path: str) -> None:
    """Raises: ValueError: files of Python code are not run."""
    raise ValueError(f"--custom_module_path {path}: code that is not installed is never run here")
