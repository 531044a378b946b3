"""Edges: what comes before the first block and after the last."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from backends.ort import devices, graphs
from backends.ort.builder import LOGITS, NORMED
from backends.ort.devices import Device
from backends.stage import Array, Output, Span
from backends.torch_net import device as torch_device
from backends.torch_net import info as models
from backends.torch_net.subspan import SubspanView
from backends.torch_net.weights import Loader

CHUNK = 128  # tokens that are embedded at once; a family's forward makes a mask of CHUNK x CHUNK, or some


class OnnxEmbedding:
    """The table of embeddings, as it lies in the model's file: all that comes before the blocks that are built."""

    def __init__(self, path: Path) -> None:
        folder, net, anatomy, plan = models.examine(path)
        dtype = torch_device.DTYPES[models.stored_dtype(folder, plan)]
        Loader(net, anatomy, folder, plan, dtype, torch.device("cpu"), None).load(Span(0, 0))
        table = net.model.get_input_embeddings().weight
        self._table: Array = torch_device.to_numpy(table)
        config = net.config
        gemma = config.model_type.startswith("gemma")
        self._scale = np.float32(
            math.sqrt(config.hidden_size) if gemma else getattr(config, "embedding_multiplier", 1.0)
        )

    def __call__(self, ids: Array, positions: Array) -> Array:
        """`[tokens, width]` float32 of `[tokens]` ids and positions."""
        found: Array = self._table[ids].astype(np.float32)
        return found if self._scale == 1 else found * self._scale


class FamilyEmbedding:
    """Family embedding: what comes before exported blocks, positions and norms too."""

    def __init__(self, path: Path) -> None:
        folder, net, anatomy, plan = models.examine(path)
        dtype = torch_device.DTYPES[models.stored_dtype(folder, plan)]
        Loader(net, anatomy, folder, plan, dtype, torch.device("cpu"), None).load(Span(0, 0))
        table = net.model.get_input_embeddings()
        for name, module in net.edges().items():
            if name in anatomy.head and module is not table:
                module.float()
        table.register_forward_hook(lambda module, given, found: found.float())
        self._view = SubspanView(net, anatomy, Span(0, 0), tail=False)

    def __call__(self, ids: Array, positions: Array) -> Array:
        """`[tokens, width]` float32 of `[tokens]` ids and positions."""
        tokens, places = (torch.from_numpy(array.astype(np.int64)) for array in (ids, positions))
        pieces = zip(torch.split(tokens, CHUNK), torch.split(places, CHUNK), strict=True)
        with torch.inference_mode():
            out: Array = torch.cat([self._view.hidden(some, at, None) for some, at in pieces]).numpy()
        return out


class OnnxTail:
    """The final norm and the LM head, over the wanted rows only."""

    def __init__(self, file: Path, device: Device, threads: int) -> None:
        graph = graphs.joined([file])
        self._session = devices.session(device, graph.SerializeToString(), file.parent, threads)
        self._input = graph.graph.input[0].name
        self._dtype = np.dtype(device.dtype)
        self._width = {entry.name: entry.type.tensor_type.shape.dim[2].dim_value for entry in graph.graph.output}

    def __call__(self, hidden: Array, output: Output) -> Array:
        """float32 logits `[rows, vocab]`, or hidden states after the norm, of `[rows, width]`."""
        name = LOGITS if output == "logits" else NORMED
        if not len(hidden):
            return np.empty((0, self._width[name]), np.float32)
        (out,) = self._session.run([name], {self._input: hidden[None].astype(self._dtype, copy=False)})
        found: Array = out[0].astype(np.float32, copy=False)
        return found
