"""Weight loading: which stored tensors belong to a span, and just those put into its net.

Stored names, layouts and dtypes are mapped to the net by transformers' own conversion tables, so that old checkpoints
and experts stored one by one load as they do there. Those tables are not a public interface of transformers; this is
the only file that touches them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from backends.checkpoint.files import ModelFolder
from backends.stage import BackendError, Span
from backends.torch_net.net import Anatomy, Net

_TORCH_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A stored tensor that the net has a place for: the parameter it goes to, and whether it has to be rearranged."""

    target: str
    converted: bool


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """The stored tensors of a model by where they belong.

    Attributes:
        sources: every stored tensor that the net has a place for.
        blocks: names of the stored tensors of each block.
        edges: names of the stored tensors of each module around the blocks; of `""` for parameters beside them.
        tied: pairs of parameters that are one tensor.
        mapping: transformers' conversion table for this net.
    """

    sources: dict[str, TensorSource]
    blocks: tuple[tuple[str, ...], ...]
    edges: dict[str, tuple[str, ...]]
    tied: dict[str, str]
    mapping: list[Any]

    def head(self, anatomy: Anatomy) -> frozenset[str]:
        """The edges that a span which starts at block 0 has to load."""
        return self._with_tied(anatomy.head | {""})

    def tail(self, anatomy: Anatomy) -> frozenset[str]:
        """The edges that a span which ends at the last block has to load."""
        return self._with_tied(anatomy.tail | {""})

    def _with_tied(self, edges: frozenset[str]) -> frozenset[str]:
        """Add the edges that hold the stored one of a tied pair whose other one is needed."""
        stored = {source.target for source in self.sources.values()}
        more = set(edges)
        for pair in self.tied.items():
            for needed, partner in (pair, pair[::-1]):
                if _edge_of(needed, edges) in edges and needed not in stored and partner in stored:
                    more.add(_edge_of(partner, self.edges))
        return frozenset(more)

    def stored_names(self, span: Span, edges: Iterable[str]) -> list[str]:
        """The stored tensors of a span and these edges."""
        names = [name for block in self.blocks[span.start : span.end] for name in block]
        return names + [name for edge in sorted(edges) for name in self.edges.get(edge, ())]


def plan(net: Net, anatomy: Anatomy, names: Iterable[str]) -> WeightPlan:
    """Map stored names to the net's parameters."""
    names = sorted(names, key=dot_natural_key)
    mapping = get_model_conversion_mapping(net.model)
    sources = _sources(net, names, mapping)
    inside = _text_prefix(net, anatomy, names)
    if inside and not any(source.target.startswith(anatomy.block_prefix(0)) for source in sources.values()):
        mapping = get_model_conversion_mapping(net.model, key_mapping={rf"^{inside}": ""})
        sources = _sources(net, names, mapping)
    blocks: list[list[str]] = [[] for _ in range(anatomy.count)]
    edges: dict[str, list[str]] = {edge: [] for edge in (*anatomy.edges, "")}
    list_prefix = anatomy.block_prefix(0)[:-2]
    for name, source in sources.items():
        if source.target.startswith(list_prefix):
            blocks[int(source.target[len(list_prefix) :].split(".", 1)[0])].append(name)
        else:
            edges[_edge_of(source.target, edges)].append(name)
    return WeightPlan(
        sources,
        tuple(map(tuple, blocks)),
        {edge: tuple(stored) for edge, stored in edges.items()},
        dict(net.model.all_tied_weights_keys),
        mapping,
    )


def _sources(net: Net, names: list[str], mapping: list[Any]) -> dict[str, TensorSource]:
    places = net.model.state_dict()
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = net.model.base_model_prefix
    sources = {}
    for name in names:
        target, pattern = rename_source_key(name, renamings, converters, prefix, places)
        if target not in places and name in places:
            target, pattern = rename_source_key(name, [], [], prefix, places)
        if target in places:
            sources[name] = TensorSource(target, pattern is not None)
    return sources


def _text_prefix(net: Net, anatomy: Anatomy, names: list[str]) -> str:
    """What the names of a text model inside a larger one begin with, e.g. `language_model.`."""
    block = anatomy.block_prefix(0)
    found = next((name for name in names if block in name), "")
    return found[: found.index(block)] if found else ""


def _edge_of(parameter: str, edges: Iterable[str]) -> str:
    return next((edge for edge in edges if edge and parameter.startswith(f"{edge}.")), "")


class _Shards:
    """Open safetensors files. A tensor that is used as it lies keeps its file mapped; others do not."""

    def __init__(self, folder: ModelFolder) -> None:
        self.folder = folder
        self.open: dict[str, Any] = {}

    def slice(self, name: str) -> Any:
        shard = self.folder.weight_map[name]
        try:
            if shard not in self.open:
                self.open[shard] = safe_open(self.folder.path / shard, framework="pt")
            return self.open[shard].get_slice(name)
        except (SafetensorError, OSError) as error:
            raise BackendError(f"{self.folder.path / shard} is damaged ({error}); download it again") from error


class _Stored:
    """A stored tensor that is read when it is indexed."""

    def __init__(self, piece: Any, read: Callable[[], None]) -> None:
        self.piece, self.read = piece, read

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor: torch.Tensor = self.piece[index]
        # One element of every 4 KiB page: the file is read now and not in the middle of the first request.
        step = max(1, 4096 // tensor.element_size())
        tensor.reshape(-1)[::step].sum()
        self.read()
        return tensor


class Loader:
    """Loads a span into a net, block by block.

    `progress` is called from the threads that read. `mapped` counts the bytes that are used as they lie in their files.
    """

    def __init__(
        self,
        net: Net,
        anatomy: Anatomy,
        folder: ModelFolder,
        plan: WeightPlan,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.net, self.anatomy, self.folder, self.plan = net, anatomy, folder, plan
        self.dtype, self.device, self.progress = dtype, device, progress
        self.kept = _Shards(folder)
        self.done = self.total = self.mapped = 0
        self.lock = threading.Lock()

    def load(self, span: Span, finish: Callable[[nn.Module], None] | None = None) -> None:
        """Load a span. `finish` is called with every block as soon as it is loaded.

        Raises:
            BackendError: a tensor is missing, damaged, or has another shape than the configuration says.
        """
        edges: set[str] = set()
        if span.start == 0:
            edges |= self.plan.head(self.anatomy)
        if span.end == self.anatomy.count:
            edges |= self.plan.tail(self.anatomy)
        names = self.plan.stored_names(span, edges)
        self.total = sum(self.folder.tensor(name).nbytes for name in names)
        blocks, owner = self.net.blocks, self.net.owner()
        # transformers walks over the whole net for each call, so it is shown one block at a time.
        shown = nn.ModuleList(nn.Identity() for _ in blocks)
        owner._modules[self.net.list_name] = shown
        try:
            missing = self._fill(self.plan.stored_names(Span(0, 0), edges))
            for index in range(span.start, span.end):
                shown[index] = blocks[index]
                self._fill(self.plan.blocks[index])
                self._require(blocks[index], self.anatomy.block_prefix(index), f"block {index}")
                blocks[index].requires_grad_(False).to(self.device)
                if finish is not None:
                    finish(blocks[index])
                shown[index] = nn.Identity()
        finally:
            owner._modules[self.net.list_name] = nn.ModuleList(blocks)
        self._finish_edges(edges, missing)
        for index, block in enumerate(blocks):
            if not span.start <= index < span.end:
                block.to("meta")  # frees the buffers, which are real

    def _fill(self, names: Iterable[str]) -> set[str]:
        """Load stored tensors into the net as it is shown; give the parameters that are still missing."""
        passing = _Shards(self.folder)
        wanted = _TORCH_NAMES[self.dtype]
        state = {}
        for name in names:
            stored, source = self.folder.tensor(name), self.plan.sources[name]
            as_it_lies = self.device.type == "cpu" and stored.dtype == wanted and not source.converted
            self.mapped += stored.nbytes if as_it_lies else 0
            piece = (self.kept if as_it_lies else passing).slice(name)
            state[name] = _Stored(piece, lambda size=stored.nbytes: self._count(size))  # type: ignore[misc]
        model = self.net.model
        config = LoadStateDictConfig(
            device_map={"": self.device},
            dtype=self.dtype,
            dtype_plan=model._get_dtype_plan(self.dtype),
            weight_mapping=self.plan.mapping,
        )
        info, _ = convert_and_load_state_dict_in_model(
            model=model, state_dict=state, load_config=config, disk_offload_index=None
        )
        where = f"{self.folder.path} does not fit its configuration"
        for name, found, wanted_shape in info.mismatched_keys:
            raise BackendError(f"{where}: {name} is {tuple(found)}, not {tuple(wanted_shape)}")
        for name, error in info.conversion_errors.items():
            raise BackendError(f"{where}: {name} cannot be assembled ({str(error).strip().splitlines()[-1]})")
        return set(info.missing_keys)

    def _count(self, size: int) -> None:
        if self.progress is not None:
            with self.lock:
                self.done += size
                self.progress(self.done, self.total)

    def _require(self, module: nn.Module, prefix: str, what: str) -> None:
        missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise BackendError(
                f"{self.folder.path} lacks a tensor of {what}: {prefix}{missing[0]}{more}; "
                "the download may not be complete"
            )

    def _finish_edges(self, edges: set[str], missing: set[str]) -> None:
        model = self.net.model
        pairs = {
            target: source
            for target, source in self.plan.tied.items()
            if _edge_of(target, self.anatomy.edges) in edges and _edge_of(source, self.anatomy.edges) in edges
        }
        model.all_tied_weights_keys = pairs
        model.tie_weights(missing_keys=missing, recompute_mapping=False)
        for name, module in self.net.edges().items():
            if name in edges:
                self._require(module, f"{name}.", "the head or tail")
                module.requires_grad_(False)
