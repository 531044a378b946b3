"""Probe: what a family's forward does with its blocks, learnt without any weights.

The blocks are replaced by recorders and the modules around them by stand-ins that return random numbers; then the
family's own forward runs, once from token ids and twice from different hidden states. That shows which modules run
before and after the blocks, what a block is expected to return, and whether a block is given anything that depends on
the sequence besides the hidden states of the block before. Such a family cannot be cut at every block and is refused.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from backends.stage import BackendError
from backends.torch_net.net import Anatomy, Net, cache_parameter, first_line, takes

_TOKENS = 6
_PLAIN = bool | int | float | str | None


class StandIn(nn.Module):
    """Stand in: takes the place of a module whose weights are not loaded; its result is never used, only its shape."""

    def __init__(self, module: nn.Module, width: int, dtype: torch.dtype, log: list[Any] | None = None, name: str = ""):
        super().__init__()
        weight = getattr(module, "weight", None)
        self.width = int(getattr(module, "out_features", 0) or getattr(module, "embedding_dim", 0) or 0)
        if not self.width and isinstance(weight, torch.Tensor) and weight.ndim > 1:
            self.width = weight.shape[-1]
        self.fallback, self.dtype, self.log, self.name = width, dtype, log, name
        self.__dict__["_module"] = module  # not as a child: its weights are not this module's

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.log is not None:
            self.log.append(self.name)
        named = (kwargs.get("inputs_embeds"), kwargs.get("position_ids"))  # opt's positions take a mask before them
        value = next(x for x in (*named, *args, *kwargs.values()) if isinstance(x, torch.Tensor))
        if value.is_floating_point():
            shape = (*value.shape[:-1], self.width or value.shape[-1])
            if self.log is None and shape == value.shape:
                return value
        else:
            shape = (*value.shape, self.width or self.fallback)
        if self.log is not None:
            return torch.randn(shape, dtype=torch.float32).to(self.dtype)
        return torch.zeros((), dtype=self.dtype, device=value.device).expand(shape)


class CallRecorder:
    """Call recorder: takes the place of a block; notes what it is given and returns fresh random hidden states."""

    def __init__(self, block: nn.Module, index: int, log: list[Any], returns: int) -> None:
        self._block, self._index, self._log, self._returns = block, index, log, returns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden, rest, named = split_hidden(args, kwargs)
        out = torch.randn_like(hidden)
        self._log.append((self._index, hidden, rest, named, out))
        if not self._returns:
            return out
        return (out, *(torch.randn_like(hidden) for _ in range(self._returns - 1)))


def split_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]:
    """The hidden states among a block's arguments, and the other arguments."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs["hidden_states"], (), {name: value for name, value in kwargs.items() if name != "hidden_states"}


class _Cache(DynamicCache):  # type: ignore[misc]
    """Counts the elements that a block adds for its tokens."""

    added = 0

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.added += key_states.numel() + value_states.numel()
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def examine(net: Net) -> Anatomy:
    """Learn the anatomy of a net whose parameters are still on the meta device.

    Raises:
        BackendError: the family cannot be cut between any two blocks.
    """
    base = getattr(net.model, net.path[0])
    cache_name = cache_parameter(base)
    if cache_name is None:
        raise BackendError(f"{net.architecture} keeps its state in a way of its own, which cannot be cut into spans")
    reasons = []
    for returns in (0, 1, 2, 3):
        try:
            runs, order = _run(net, base, cache_name, returns)
            _check(net, runs)
        except Exception as error:  # noqa: BLE001 - the next form may fit; the reason is kept
            reasons.append(error)
            continue
        return _anatomy(net, runs[0], order, cache_name, takes(base, "position_ids"), returns)
    leak = next((error for error in reasons if isinstance(error, _LeakError)), None)
    reason = leak or reasons[0]
    why = str(leak) if leak else f"it does more around its blocks than can be followed ({first_line(reason)})"
    raise BackendError(f"{net.architecture} cannot be cut into spans: {why}") from reason


class _LeakError(Exception):
    """A block is given something of the sequence besides the hidden states of the block before."""


def _run(net: Net, base: nn.Module, cache_name: str, returns: int) -> tuple[list[list[Any]], list[str]]:
    """Run the forward from token ids, then from two different hidden states; give what the blocks were given."""
    width, dtype = net.config.hidden_size, net.model.dtype
    log: list[Any] = []
    owner, edges = net.owner(), net.edges()
    owner._modules[net.list_name] = None
    owner.__dict__[net.list_name] = [CallRecorder(block, i, log, returns) for i, block in enumerate(net.blocks)]
    _place(net, {name: StandIn(module, width, dtype, log, name) for name, module in edges.items()})
    positions = {"position_ids": torch.arange(_TOKENS)[None]} if takes(base, "position_ids") else {}
    runs = []
    try:
        with torch.inference_mode():
            ids = torch.randint(3, 20, (1, _TOKENS))
            cache = {cache_name: _new_cache(net), "use_cache": True}
            net.model(input_ids=ids, **positions, **cache)
            runs.append(list(log))
            for _ in range(2):
                log.clear()
                cache = {cache_name: _new_cache(net), "use_cache": True}
                base(inputs_embeds=torch.randn(1, _TOKENS, width).to(dtype), **positions, **cache)
                runs.append(list(log))
    finally:
        del owner.__dict__[net.list_name]
        owner._modules[net.list_name] = nn.ModuleList(net.blocks)
        _place(net, edges)
    order = ["" if isinstance(entry, tuple) else entry for entry in runs[0]]
    return [[entry for entry in run if isinstance(entry, tuple)] for run in runs], order


def _place(net: Net, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        *path, last = name.split(".")
        parent = net.model
        for step in path:
            parent = getattr(parent, step)
        parent._modules[last] = module


def _new_cache(net: Net) -> _Cache:
    try:
        return _Cache(config=net.config)
    except Exception:  # noqa: BLE001 - as in Net.cache_layers
        return _Cache()


def _check(net: Net, runs: list[list[Any]]) -> None:
    for run in runs:
        if [entry[0] for entry in run] != list(range(len(net.blocks))):
            raise _LeakError("its blocks do not run once each, in order")
        for before, after in itertools.pairwise(run):
            if after[1].shape != before[4].shape or not torch.equal(after[1], before[4]):
                raise ValueError("the hidden states change on their way from block to block")
    for first, *others in zip(*runs, strict=True):
        for other in others:
            if not _same(_data(first), _data(other)):
                raise _LeakError("its blocks are given more of the sequence than the hidden states of the block before")


def _data(entry: Any) -> tuple[Any, ...]:
    """What a block was given besides hidden states, without plain switches, which callers may leave out."""
    named = {name: value for name, value in entry[3].items() if not isinstance(value, _PLAIN)}
    return tuple(value for value in entry[2] if not isinstance(value, _PLAIN)), named


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, Sequence) and not isinstance(a, str):
        return isinstance(b, Sequence) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and (a == b or not isinstance(a, _PLAIN))


def _anatomy(
    net: Net, run: list[Any], order: list[str], cache_name: str, takes_positions: bool, returns: int
) -> Anatomy:
    first, last = order.index(""), len(order) - 1 - order[::-1].index("")
    if any(name for name in order[first:last]):
        raise BackendError(f"{net.architecture} cannot be cut into spans: it computes between its blocks")
    return Anatomy(
        path=net.path,
        blocks=net.list_name,
        count=len(net.blocks),
        edges=tuple(net.edges()),
        head=frozenset(order[:first]),
        tail=frozenset(order[last + 1 :]),
        returns=returns,
        kv_elements=_kv_elements(net, run),
        cache_name=cache_name,
        takes_positions=takes_positions,
    )


def _kv_elements(net: Net, run: list[Any]) -> tuple[int, ...]:
    """Run blocks on the meta device up to where they stop, and count what they hand to the cache.

    Raises:
        BackendError: a block leaves something for later blocks in an object that all of them are given.
    """
    shared = [x for entry in run for x in (*entry[2], *entry[3].values()) if isinstance(x, Mapping | list) and not x]
    known: dict[Any, int] = {}
    counts = []
    for (index, hidden, rest, named, _), block in zip(run, net.blocks, strict=True):
        shapes = tuple((name, parameter.shape) for name, parameter in block.named_parameters())
        kind = index if shared else (type(block), shapes)
        if kind not in known:
            cache = _new_cache(net)
            args = [_to_meta(x, cache) for x in rest]
            kwargs = {name: _to_meta(x, cache) for name, x in named.items()}
            # Experts are chosen by value, which meta tensors do not have; the cache has been fed before that fails.
            with torch.inference_mode(), suppress(Exception):
                copy.deepcopy(block).to("meta")(hidden.to("meta"), *args, **kwargs)
            known[kind] = cache.added // _TOKENS
        counts.append(known[kind])
    if any(shared):
        raise BackendError(f"{net.architecture} cannot be cut into spans: its blocks share keys and values")
    return tuple(counts)


def _to_meta(value: Any, cache: _Cache) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, tuple):
        return tuple(_to_meta(x, cache) for x in value)
    return cache if isinstance(value, _Cache) else value
