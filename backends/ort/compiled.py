"""Compiled graphs of a model's blocks, kept on the disk: what is there is used, what is missing is compiled."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from backends import disk_space
from backends.artifact_cache import ArtifactEntry, ArtifactLabel
from backends.checkpoint.files import ModelFolder
from backends.ort import families, graphs
from backends.ort.builder import Builder
from backends.ort.devices import Device
from backends.ort.export import Exporter
from backends.stage import ModelInfo, Span
from backends.torch_net import device as torch_device
from backends.torch_net.net import Anatomy, Net
from backends.torch_net.weights import Loader, WeightPlan

FORMAT = 2  # of the graphs; another number makes them anew
BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.125, "int4": 0.625}  # of a weight, with its share of a scale
_STORED = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

Progress = Callable[[int, int], None]


def growth(stored: str, precision: str) -> float:
    """How many times as large weights are in `precision` as in the dtype that they are stored in."""
    return BYTES[precision] / _STORED[stored]


class Compiler:
    """Compiles blocks of one model for one device and precision.

    Args:
        cache: see `backends.artifact_cache`. All blocks of a model are one entry.

    Raises:
        BackendError: nothing can be written there.
    """

    def __init__(
        self,
        folder: ModelFolder,
        net: Net,
        anatomy: Anatomy,
        plan: WeightPlan,
        info: ModelInfo,
        device: Device,
        precision: str,
        cache: Path | None,
    ) -> None:
        # The whole model is known to be cut, so neither embedding nor head comes along with a block at an end.
        inner = replace(anatomy, head=frozenset(), tail=frozenset())
        self.blocks = Loader(net, inner, folder, plan, torch.float32, torch.device("cpu"), None)
        self.tails = Loader(net, anatomy, folder, plan, torch.float32, torch.device("cpu"), None)
        self.net, self.info, self.precision = net, info, precision
        # Tables of positions, mostly: to load one block takes them from all the others.
        self.buffers = [[(m, dict(m._buffers)) for m in block.modules() if m._buffers] for block in net.blocks]
        if families.is_built(net.architecture, net.config):
            self.writer: Builder | Exporter = Builder(net, device, precision)
        else:
            self.writer = Exporter(net, anatomy, precision)
        with disk_space.written(cache or Path(tempfile.gettempdir()), 0, "compile blocks"):
            self.entry = ArtifactEntry(cache, f"{_digest(folder)}-onnx{FORMAT}", f"{device.target}-{precision}")
        self.folder, self.model = self.entry.path, folder.path

    def span(self, span: Span, progress: Progress) -> list[Path]:
        """The graphs of a span's blocks, and of the tail if it ends the model; those that are missing are compiled.

        Several servers may ask at once: each piece is compiled by one of them, the others wait for it.

        Raises:
            BackendError: the disk is full, or the model's files are damaged.
        """
        info = self.info
        pieces = [(f"block-{block}", info.block_bytes[block]) for block in range(span.start, span.end)]
        if span.end == info.blocks:
            pieces.append(("tail", info.edge_bytes[1]))
        files = [self.folder / f"{name}.onnx" for name, _ in pieces]
        missing = sum(size for (_, size), file in zip(pieces, files, strict=True) if not file.exists())
        needed = int(missing * growth(info.dtype, self.precision))
        done, total = 0, sum(size for _, size in pieces)
        try:
            with disk_space.written(self.folder, needed, f"compile blocks {span}"):
                disk_space.require(self.folder, needed)
                for (name, size), file in zip(pieces, files, strict=True):
                    with FileLock(self.folder / f"{name}.lock"):
                        if not file.exists():
                            self._compile(name)
                    done += size
                    progress(done, total)
                self.entry.label(ArtifactLabel(str(self.model), "onnx", self._blocks(), self.precision))
        finally:
            self.net.model.to("meta")
            torch_device.release()
        return files

    def _blocks(self) -> str:
        """Those that are compiled: `0:6, 10:15`."""
        there = [block for block in range(self.info.blocks) if (self.folder / f"block-{block}.onnx").exists()]
        starts = [block for block in there if block - 1 not in there]
        ends = [block + 1 for block in there if block + 1 not in there]
        return ", ".join(str(Span(*ends)) for ends in zip(starts, ends, strict=True))

    def _compile(self, name: str) -> None:
        if name == "tail":
            count = self.info.blocks
            self.tails.load(Span(count, count))
            graph = self.writer.tail()
        else:
            number = int(name.removeprefix("block-"))
            for module, buffers in self.buffers[number]:
                module._buffers.update(buffers)
            self.blocks.load(Span(number, number + 1))
            graph = self.writer.block(number)
        graphs.write(graph, self.folder, name)


def _digest(folder: ModelFolder) -> str:
    """Tells this model from others in the cache: by its files' places, sizes and times."""
    files = [folder.path / "config.json", *(folder.path / shard for shard in sorted(set(folder.weight_map.values())))]
    facts: Sequence[Any] = [
        (str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
