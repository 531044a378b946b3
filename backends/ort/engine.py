"""ONNX engine: a row of blocks as one session of ONNX Runtime, run over the sessions of a swarm.

A step of single tokens, one of each session, is one run for all sessions that lie in the same slab. A piece of a
prompt is a run of its own: the kernel of grouped-query attention takes one sequence at a time where it has both earlier
tokens and several new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from backends.ort import devices
from backends.ort.builder import LAST_POSITIONS, LONGEST, POSITIONS
from backends.ort.devices import Device
from backends.ort.kv_cache import Slab, Slot, SlotPool
from backends.stage import Array, Span

CHUNK = 512  # tokens of a prompt that are run at once; attention scores take CHUNK x length for every head
GAP = 2  # slots between two sessions that ride along rather than have their neighbours run apart

Piece = tuple[Slot, int]  # and the number of its new tokens


class OrtEngine:
    """A row of blocks as one session of ONNX Runtime, run over the sessions of a swarm.

    Args:
        graph: of the blocks, joined.
        data: the folder of its tensors.
    """

    def __init__(self, graph: onnx.ModelProto, data: Path, span: Span, device: Device, threads: int) -> None:
        self.span, self.device, self.dtype = span, device, np.dtype(device.dtype)
        self.session = devices.session(device, graph.SerializeToString(), data, threads)
        shapes = {entry.name: entry.shape for entry in self.session.get_inputs()}
        key, value = (shapes[f"past_key_values.{span.start}.{kind}"][1::2] for kind in ("key", "value"))
        self.inputs = frozenset(shapes)
        self.pool = SlotPool(device, span.end - span.start, (key, value), clean=LONGEST not in shapes)

    def run(self, hidden: Array, pieces: Sequence[Piece]) -> Array:
        """Run packed tokens; the sessions' lengths stay as they are.

        Args:
            hidden: `[tokens, width]`.

        Returns:
            the same after the last block, float32 or float16.

        Raises:
            MemoryError: there is no room; nothing has changed.
        """
        for slot, length in pieces:
            self.pool.grow(slot, slot.length + length)
        hidden = np.ascontiguousarray(hidden, self.dtype)
        out = np.empty_like(hidden)
        starts = np.cumsum([0, *(length for _, length in pieces)])
        single: dict[Slab, dict[int, int]] = {}
        for (slot, length), start in zip(pieces, starts, strict=False):
            if length == 1:
                single.setdefault(slot.slab, {})[slot.index] = int(start)
                continue
            for at in range(0, length, CHUNK):
                some = slice(int(start) + at, int(start) + min(at + CHUNK, length))
                position = slot.length + at
                lengths = np.array([position + some.stop - some.start], np.int32)
                out[some] = self._run(slot.slab, (slot.index, slot.index + 1), hidden[None, some], lengths)[0]
        for slab, indexes in single.items():
            for first, last in _runs(sorted(indexes)):
                lengths = np.ones(last - first, np.int32)
                lengths += [slot.length if slot else 0 for slot in slab.slots[first:last]]
                x = np.zeros((last - first, 1, hidden.shape[1]), self.dtype)
                there = {index: start for index, start in indexes.items() if first <= index < last}
                for index, start in there.items():
                    x[index - first, 0] = hidden[start]
                y = self._run(slab, (first, last), x, lengths)
                for index, start in there.items():
                    out[start] = y[index - first, 0]
        return out

    def _run(self, slab: Slab, indexes: tuple[int, int], x: Array, lengths: Array) -> Array:
        """Args: lengths: of each session after the step, `[batch]`; x: `[batch, tokens, width]`."""
        binding = slab.bindings.get(indexes) or self._bind(slab, indexes)
        y = np.empty_like(x)
        last = lengths - np.int32(1)
        inputs: list[tuple[str, Array]] = [(f"hidden.{self.span.start}", x), (LAST_POSITIONS, last)]
        if LONGEST in self.inputs:
            inputs.append((LONGEST, np.array(lengths.max(), np.int32)))
        if POSITIONS in self.inputs:
            new = np.arange(1 - x.shape[1], 1, dtype=np.int64)
            inputs.append((POSITIONS, last[:, None].astype(np.int64) + new))
        for name, array in inputs:
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        binding.bind_output(f"hidden.{self.span.end}", "cpu", 0, y.dtype, y.shape, y.ctypes.data)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            if "allocat" in str(error):
                raise MemoryError("no room for the step's own arrays") from error
            raise
        return y

    def _bind(self, slab: Slab, indexes: tuple[int, int]) -> ort.IOBinding:
        first, last = indexes
        binding = self.session.io_binding()
        whole = (first, last) == (0, len(slab.slots))
        for index, array in enumerate(slab.arrays):
            block, kind = self.span.start + index // 2, ("key", "value")[index % 2]
            past, present = f"past_key_values.{block}.{kind}", f"present.{block}.{kind}"
            if whole:
                binding.bind_ortvalue_input(past, array)
                binding.bind_ortvalue_output(present, array)
            else:
                shape = (last - first, *slab.shapes[index % 2][1:])
                where = (self.device.memory, self.device.index, self.dtype, shape, slab.address(index, first))
                binding.bind_input(past, *where)
                binding.bind_output(present, *where)
        slab.bindings[indexes] = binding
        return binding


def _runs(indexes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The ranges of slots to run together: neighbours, and those that only few others lie between."""
    first = last = indexes[0]
    for index in indexes[1:]:
        if index - last > GAP + 1:
            yield first, last + 1
            first = index
        last = index
    yield first, last + 1
