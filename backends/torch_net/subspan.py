"""Sub-span view: a sub-range of a loaded span, run by the family's own forward.

A view shares all weights with the net: it holds copies of the few modules on the path to the blocks, and in them
another list of blocks. Blocks before the range are passed over rather than left out, so that what the family's forward
counts (layer types, cache indexes) stays as it was. The first block of the range is given the hidden states that came
from the hop before, whatever the forward did to them on the way; the last one's result is taken where it appears.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from backends.stage import Span
from backends.torch_net.net import Anatomy, Net, takes
from backends.torch_net.probe import StandIn


class _Skip:
    """Stands for a block of an earlier span: hands the hidden states on."""

    def __init__(self, block: nn.Module, returns: int) -> None:
        self._block, self._returns = block, returns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *(None,) * (self._returns - 1)) if self._returns else hidden


class _Entry:
    """The first block of the range: runs on `hidden` instead of what the forward made of it."""

    def __init__(self, block: Any) -> None:
        self._block = block
        self.hidden: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden, self.hidden = self.hidden, None
        if args:
            return self._block(hidden, *args[1:], **kwargs)
        return self._block(**{**kwargs, "hidden_states": hidden})


class _Exit:
    """The last block of the range: keeps its result."""

    def __init__(self, block: Any) -> None:
        self._block = block
        self.hidden: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        out = self._block(*args, **kwargs)
        self.hidden = out if isinstance(out, torch.Tensor) else out[0]
        return out


class SubspanView:
    """Subspan view: runs the blocks of `span`.

    With `tail`, what comes after the last block runs as well; without `head`, what comes before the first does not
    count. An empty span at either end is what comes before or after all blocks.
    """

    def __init__(self, net: Net, anatomy: Anatomy, span: Span, tail: bool, head: bool = True) -> None:
        self.anatomy = anatomy
        head = head and span.start == 0
        passed = max(span.start, int(span.end == 0))  # there is always one block to enter and to leave by
        blocks: list[Any] = [_Skip(block, anatomy.returns) for block in net.blocks[:passed]]
        blocks += net.blocks[span.start : span.end]
        self.entry: _Entry | None = None
        self.exit: _Exit | None = None
        if not head:
            first = min(span.start, len(blocks) - 1)
            blocks[first] = self.entry = _Entry(blocks[first])
        if not tail:
            blocks[-1] = self.exit = _Exit(blocks[-1])
        run = (anatomy.head if head else frozenset()) | (anatomy.tail if tail else frozenset())
        stand_ins = {
            name: StandIn(module, net.config.hidden_size, net.model.dtype)
            for name, module in net.edges().items()
            if name not in run
        }
        self.model = _copy_path(net, blocks, stand_ins)
        self.base = getattr(self.model, net.path[0])
        self.selects = takes(self.model, "logits_to_keep")

    def batch(self, x: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """As `hidden`, of several sequences of one length: `[batch, tokens, ...]`."""
        assert self.exit is not None
        self.base(**self._arguments(x, positions, cache))
        hidden, self.exit.hidden = self.exit.hidden, None
        assert hidden is not None
        return hidden

    def after(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states after the final norm, and logits, of hidden states `[batch, tokens, hidden]` before it."""
        final = self.base(**self._entered(hidden), use_cache=False)[0]
        return final, self.model(**self._entered(hidden), use_cache=False).logits

    def hidden(self, x: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Hidden states `[tokens, hidden]` after the last block of the range, before any final norm."""
        return self.batch(x[None], positions[None], cache)[0]

    def final(self, x: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Hidden states `[tokens, hidden]` after the final norm."""
        out: torch.Tensor = self.base(**self._arguments(x[None], positions[None], cache))[0]
        return out[0]

    def logits(self, x: torch.Tensor, positions: torch.Tensor, cache: Any, rows: torch.Tensor) -> torch.Tensor:
        """Logits `[len(rows), vocab]` of the tokens at these indexes."""
        arguments = self._arguments(x[None], positions[None], cache)
        if self.selects:
            out: torch.Tensor = self.model(**arguments, logits_to_keep=rows).logits
            return out[0]
        out = self.model(**arguments).logits
        return out[0, rows]

    def _arguments(self, x: torch.Tensor, positions: torch.Tensor, cache: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {self.anatomy.cache_name: cache, "use_cache": cache is not None}
        if self.anatomy.takes_positions:
            arguments["position_ids"] = positions
        return arguments | ({"input_ids": x} if self.entry is None else self._entered(x))

    def _entered(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self.entry is not None
        self.entry.hidden = hidden
        return {"inputs_embeds": hidden.clone()}  # a copy, because some forwards scale their input in place


def _copy_path(net: Net, blocks: list[Any], stand_ins: dict[str, StandIn]) -> Any:
    """Copy the modules from the whole model to the owner of the blocks, and give the copies these children."""
    root = _copy(net.model)
    parent, prefix = root, ""
    for step in (*net.path, net.list_name):
        for name in parent._modules:
            if prefix + name in stand_ins:
                parent._modules[name] = stand_ins[prefix + name]
        if step == net.list_name:
            # A plain list: transformers slices it in every forward, which rebuilds a ModuleList.
            del parent._modules[step]
            parent.__dict__[step] = blocks
        else:
            parent._modules[step] = _copy(parent._modules[step])
            parent, prefix = parent._modules[step], f"{prefix}{step}."
    return root


def _copy(module: Any) -> Any:
    clone = copy.copy(module)
    clone.__dict__["_modules"] = dict(module._modules)
    return clone
