"""KV cache: the keys and values of sessions, where grouped-query attention reads them and writes to them in place.

Its kernel takes one array of keys and one of values for a whole batch, `[batch, heads, room, width]`. So sessions lie
side by side in a slab, an array with some slots of one room, and those that are next to each other run together.
A session that outgrows its slot moves to a slab with twice the room. Memory that no token has reached is not touched,
so it costs nothing on the usual systems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from backends.ort.devices import Device
from backends.stage import Array

Kept = tuple[int, int]  # heads, and numbers of each, that a block keeps of a token as a key or as a value

SLOTS = 8  # of a slab
LEAST_ROOM = 256  # tokens of room
SLAB_BYTES = 1 << 30  # bytes that a slab of several slots takes at most


def room_for(tokens: int) -> int:
    """The tokens of room in the smallest slot for a session of so many."""
    return max(LEAST_ROOM, 1 << tokens.bit_length())


@dataclass(slots=True, eq=False)
class Slot:
    """The slot of one session in a slab.

    Attributes:
        length: tokens whose keys and values are kept; less than the slab's room, so that a step in which the session
            only rides along has somewhere to write.
        reach: the largest length so far.
    """

    slab: Slab
    index: int
    length: int = 0
    reach: int = 0


class Slab:
    """Slots of one room for keys and values of the engine's blocks.

    Attributes:
        shapes: of an array of keys, and of one of values, which differ where a family keeps them compressed.
        arrays: keys, values of the first block, keys, values of the second, and so on.
        bindings: for the engine: what is bound for a run of neighbouring slots.
    """

    def __init__(self, device: Device, blocks: int, kept: tuple[Kept, Kept], count: int, room: int) -> None:
        self.device, self.room = device, room
        self.shapes = [(count, heads, room, width) for heads, width in kept]
        self.slots: list[Slot | None] = [None] * count
        self.bindings: dict[tuple[int, int], Any] = {}
        self.arrays: list[ort.OrtValue] = []
        self._shared: list[Array] = []
        for shape in self.shapes * blocks:
            if device.memory == "cpu":
                array = np.zeros(shape, device.dtype)
                self._shared.append(array)
                self.arrays.append(ort.OrtValue.ortvalue_from_numpy(array))
            else:
                self.arrays.append(
                    ort.OrtValue.ortvalue_from_shape_and_type(
                        shape, np.dtype(device.dtype), device.memory, device.index
                    )
                )

    def address(self, array: int, index: int) -> int:
        """The address at which a slot of an array begins."""
        size = math.prod(self.shapes[array % 2][1:]) * np.dtype(self.device.dtype).itemsize
        return int(self.arrays[array].data_ptr()) + index * size

    def clear(self, index: int, length: int) -> None:
        """Set the first `length` tokens of a slot to zero, on a CPU."""
        for array in self._shared:
            array[index, :, :length] = 0

    def copy(self, index: int, other: Slab, to: int, length: int) -> None:
        """Copy the first `length` tokens of a slot to a slot of another slab."""
        for number in range(len(self.arrays)):
            if self._shared:
                other._shared[number][to, :, :length] = self._shared[number][index, :, :length]
            else:
                array = other.arrays[number].numpy()
                array[to, :, :length] = self.arrays[number].numpy()[index, :, :length]
                other.arrays[number].update_inplace(array)


class SlotPool:
    """All slabs of an engine, and which of their slots are taken.

    Args:
        kept: of a key, and of a value.
        clean: slots are all zeros where no session has written; for attention that reads what it masks.
    """

    def __init__(self, device: Device, blocks: int, kept: tuple[Kept, Kept], clean: bool = False) -> None:
        self.device, self.blocks, self.kept, self.clean = device, blocks, kept, clean
        self.token_bytes = blocks * sum(map(math.prod, kept)) * np.dtype(device.dtype).itemsize
        self.slabs: list[Slab] = []

    def acquire(self, tokens: int) -> Slot:
        """A slot for a session of so many tokens.

        Raises:
            MemoryError: no memory for another slab.
        """
        room = room_for(tokens)
        for slab in self.slabs:
            if slab.room == room and None in slab.slots:
                break
        else:
            fitting = SLAB_BYTES // (room * self.token_bytes) if self.device.addressable else 1
            slab = Slab(self.device, self.blocks, self.kept, min(max(fitting, 1), SLOTS), room)
            self.slabs.append(slab)
        index = slab.slots.index(None)
        slab.slots[index] = slot = Slot(slab, index)
        return slot

    def grow(self, slot: Slot, tokens: int) -> None:
        """Move the session to a larger slot if this one has no room for so many tokens.

        Raises:
            MemoryError: as `take`; the session stays where it is.
        """
        if tokens >= slot.slab.room:
            larger = self.acquire(tokens)
            slot.slab.copy(slot.index, larger.slab, larger.index, slot.length)
            self.release(slot)
            slot.slab, slot.index, slot.reach = larger.slab, larger.index, 0
            slot.slab.slots[slot.index] = slot
        slot.reach = max(slot.reach, tokens)

    def release(self, slot: Slot) -> None:
        """End a session: its slot is free, and a slab without sessions is given up."""
        slot.slab.slots[slot.index] = None
        if not any(slot.slab.slots):
            self.slabs.remove(slot.slab)
        elif self.clean:
            slot.slab.clear(slot.index, slot.reach)

    def nbytes(self) -> int:
        """The bytes of the slots that are taken."""
        return sum(sum(slot is not None for slot in slab.slots) * slab.room * self.token_bytes for slab in self.slabs)
