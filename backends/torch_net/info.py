"""Model information: what is known of a model before its weights are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from backends.checkpoint import files
from backends.checkpoint.files import ModelFolder
from backends.stage import BackendError, ModelInfo, Options
from backends.torch_net import device, probe, quantize, weights
from backends.torch_net.net import Anatomy, Net, build, context_length
from backends.torch_net.weights import WeightPlan

_ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def describe(path: Path, options: Options | None = None) -> ModelInfo:
    """Read a model folder's configuration and the headers of its safetensors files.

    Args:
        options: sizes are what a span loaded with them takes; None: what is stored.

    Raises:
        BackendError: no model there, files of it are missing or damaged, a family that cannot be cut into spans, or an
            option that this machine does not have.
    """
    folder, net, anatomy, plan = examine(path)
    for shard in sorted(set(folder.weight_map.values())):
        folder.header(shard)
    info = model_info(folder, net, anatomy, plan, stored_dtype(folder, plan))
    if options is None:
        return info
    target = device.resolve_device(options.device)
    quantize.require(options.quantize, target)
    return held(info, net, device.resolve_dtype(options.dtype, info.dtype, target), options.quantize)


def held(info: ModelInfo, net: Net, dtype: torch.dtype, method: str | None) -> ModelInfo:
    """The same with the sizes that it has when it is loaded in `dtype` and quantised by `method`."""
    grown = dtype.itemsize / _ITEM_BYTES[info.dtype]
    head, tail = info.edge_bytes
    return replace(
        info,
        block_bytes=tuple(quantize.held(block, dtype, method) for block in net.blocks),
        edge_bytes=(int(head * grown), int(tail * grown)),
        kv_bytes_per_token=int(info.kv_bytes_per_token * grown),
    )


def examine(path: Path, dtype: torch.dtype = torch.float32) -> tuple[ModelFolder, Net, Anatomy, WeightPlan]:
    """Build the model of a folder without weights, and map its stored tensors to it."""
    folder = files.read(path)
    net = build(folder, dtype)
    anatomy = probe.examine(net)
    plan = weights.plan(net, anatomy, folder.weight_map)
    empty = next((block for block, names in enumerate(plan.blocks) if not names), None)
    if empty is not None:
        raise BackendError(
            f"{path} has no tensors for block {empty} of {anatomy.count}; the download may not be complete, "
            "or config.json belongs to another model"
        )
    return folder, net, anatomy, plan


def stored_dtype(folder: ModelFolder, plan: WeightPlan) -> str:
    """The dtype of the first block whose file is there; models are stored in one dtype."""
    failed: BackendError | None = None
    for names in plan.blocks:
        try:
            return folder.stored_dtype(list(names))
        except BackendError as error:
            failed = failed or error
    raise failed or BackendError(f"{folder.path} has no blocks")


def model_info(folder: ModelFolder, net: Net, anatomy: Anatomy, plan: WeightPlan, dtype: str) -> ModelInfo:
    """Sizes come from the headers; for files that are not there (a server may hold its own only), from the shapes."""
    sizes = {name: parameter.numel() * _ITEM_BYTES[dtype] for name, parameter in net.model.named_parameters()}

    def size(names: tuple[str, ...], prefix: str) -> int:
        try:
            return sum(folder.tensor(name).nbytes for name in names)
        except BackendError:
            return sum(size for name, size in sizes.items() if name.startswith(prefix))

    def edges(names: frozenset[str]) -> int:
        return sum(size(plan.edges.get(edge, ()), f"{edge}.") for edge in names if edge)

    return ModelInfo(
        architecture=net.architecture,
        blocks=anatomy.count,
        hidden_size=int(net.config.hidden_size),
        vocab_size=int(net.config.vocab_size),
        context_length=context_length(net.config),
        dtype=dtype,
        block_bytes=tuple(size(names, anatomy.block_prefix(block)) for block, names in enumerate(plan.blocks)),
        edge_bytes=(edges(plan.head(anatomy)), edges(plan.tail(anatomy))),
        kv_bytes_per_token=max(anatomy.kv_elements) * _ITEM_BYTES[dtype],
    )
