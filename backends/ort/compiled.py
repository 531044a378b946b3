"""Compiled graphs of a model's blocks, kept on the disk: what is there is used, what is missing is compiled."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from backends.disk import is_full
from backends.huggingface import device as torch_device
from backends.huggingface.family import Anatomy, Net
from backends.huggingface.files import ModelFolder
from backends.huggingface.weights import Loader, Plan
from backends.ort import families, graphs
from backends.ort.builder import Builder
from backends.ort.devices import Device
from backends.ort.export import Exporter
from backends.stage import BackendError, ModelInfo, Span

FORMAT = 2  # of the graphs; another number makes them anew
BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.125, "int4": 0.625}  # of a weight, with its share of a scale
_STORED = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

Progress = Callable[[int, int], None]


class Compiler:
    """Compiles blocks of one model for one device and precision into a folder below `cache`."""

    def __init__(
        self,
        folder: ModelFolder,
        net: Net,
        anatomy: Anatomy,
        plan: Plan,
        info: ModelInfo,
        device: Device,
        precision: str,
        cache: Path,
    ) -> None:
        # The whole model is known to be cut, so neither embedding nor head comes along with a block at an end.
        inner = replace(anatomy, head=frozenset(), tail=frozenset())
        self.blocks = Loader(net, inner, folder, plan, torch.float32, torch.device("cpu"), None)
        self.tails = Loader(net, anatomy, folder, plan, torch.float32, torch.device("cpu"), None)
        self.net, self.info, self.precision = net, info, precision
        if families.is_built(net.architecture, net.config):
            self.writer: Builder | Exporter = Builder(net, device, precision)
        else:
            self.writer = Exporter(net, anatomy, precision)
        self.folder = cache / f"{_digest(folder)}-onnx{FORMAT}" / f"{device.target}-{precision}"

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
        needed = int(missing / _STORED[info.dtype] * BYTES[self.precision])
        done, total = 0, sum(size for _, size in pieces)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < needed:
                raise OSError(errno.ENOSPC, "no room")
            for (name, size), file in zip(pieces, files, strict=True):
                with FileLock(self.folder / f"{name}.lock"):
                    if not file.exists():
                        self._compile(name)
                done += size
                progress(done, total)
        except OSError as error:
            if is_full(error):
                raise BackendError(
                    f"the disk that holds {self.folder} is full; {needed / 1e9:.1f} GB are needed to compile blocks "
                    f"{span}: free some space, or set SWARM_HOME to a folder on another disk"
                ) from error
            raise BackendError(f"{self.folder} cannot be written: {error}") from error
        finally:
            self.net.model.to("meta")
            torch_device.release()
        return files

    def _compile(self, name: str) -> None:
        if name == "tail":
            count = self.info.blocks
            self.tails.load(Span(count, count))
            graph = self.writer.tail()
        else:
            number = int(name.removeprefix("block-"))
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
