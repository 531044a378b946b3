"""Loading: from a model folder to a transformers stage whose results have been compared with the family's own."""

from __future__ import annotations

from pathlib import Path

import torch

from backends.huggingface import check
from backends.huggingface.stage import TransformersStage
from backends.stage import BackendError, Options, Span
from backends.torch_net import device, quantize
from backends.torch_net.info import examine, model_info
from backends.torch_net.net import build
from backends.torch_net.weights import Loader


def load(path: Path, span: Span, options: Options) -> TransformersStage:
    """Load the blocks of `span`, with the embedding if it starts at 0 and norm and LM head if it ends at the last.

    Raises:
        BackendError: as `backends.stage.Backend.load`.
    """
    target = device.resolve_device(options.device)
    quantize.require(options.quantize, target)
    quantize.require_plain_cache(options.kv_dtype)
    if options.threads is not None:
        if options.threads < 1:
            raise BackendError(f"--threads {options.threads}: at least one thread is needed")
        torch.set_num_threads(options.threads)
    folder, net, anatomy, plan = examine(path)
    _require_span(span, anatomy.count, path)
    stored = folder.stored_dtype([name for block in plan.blocks[span.start : span.end] for name in block])
    dtype = device.resolve_dtype(options.dtype, stored, target)
    if dtype != net.model.dtype:
        net = build(folder, dtype)
    quantize.require_use(options.quantize, net.blocks[span.start : span.end])
    info = model_info(folder, net, anatomy, plan, stored)
    # Blocks that are to be quantised are read on the CPU, and only what is left of each goes to the device.
    reads = torch.device("cpu") if options.quantize else target
    loader = Loader(net, anatomy, folder, plan, dtype, reads, options.progress)
    try:
        loader.load(span, quantize.shrinker(options.quantize, dtype, target))
        net.move(target)
        mapped = loader.mapped
        del loader
        device.release()
    except Exception as error:
        if device.out_of_memory(error):
            raise BackendError(
                f"{target} has no room for blocks {span} of {path} in {device.dtype_name(dtype)}; "
                "take fewer blocks, a smaller --dtype or --quantize"
            ) from error
        raise
    stage = TransformersStage(net, anatomy, info, span, target, dtype)
    stage.exact = dtype == torch.float32 and options.quantize is None
    stage.mapped = mapped
    net.cache_lookups()
    check.choose_mode(stage)
    return stage


def _require_span(span: Span, blocks: int, path: Path) -> None:
    if not 0 <= span.start < span.end:
        raise BackendError(f"blocks {span}: a span is START:END with 0 <= START < END")
    if span.end > blocks:
        raise BackendError(f"blocks {span} of a model with {blocks} ({path}); take a span inside 0:{blocks}")
