"""Keys and values of sessions, where grouped-query attention reads them and writes to them in place.

Its kernel takes one array of keys and one of values for a whole batch, `[batch, heads, room, width]`. So sessions sit
side by side on a board, an array with some places of one room, and those that are next to each other run together.
A session that outgrows its place moves to a board with twice the room. Memory that no token has reached is not touched,
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

PLACES = 8  # of a board
LEAST = 256  # tokens of room
BOARD = 1 << 30  # bytes that a board of several places takes at most


def room_for(tokens: int) -> int:
    """Tokens of room in the smallest place for a session of so many."""
    return max(LEAST, 1 << tokens.bit_length())


@dataclass(slots=True, eq=False)
class Slot:
    """A session's place.

    Attributes:
        length: tokens whose keys and values are kept; less than the board's room, so that a step in which the session
            only rides along has somewhere to write.
        reach: the largest length so far.
    """

    board: Slab
    place: int
    length: int = 0
    reach: int = 0


class Slab:
    """Places of one room for keys and values of the engine's blocks.

    Attributes:
        shapes: of an array of keys, and of one of values, which differ where a family keeps them compressed.
        arrays: keys, values of the first block, keys, values of the second, and so on.
        bindings: for the engine: what is bound for a run of places.
    """

    def __init__(self, device: Device, blocks: int, kept: tuple[Kept, Kept], places: int, room: int) -> None:
        self.device, self.room = device, room
        self.shapes = [(places, heads, room, width) for heads, width in kept]
        self.seats: list[Slot | None] = [None] * places
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

    def address(self, index: int, place: int) -> int:
        """Where a place of an array begins."""
        size = math.prod(self.shapes[index % 2][1:]) * np.dtype(self.device.dtype).itemsize
        return int(self.arrays[index].data_ptr()) + place * size

    def clear(self, place: int, length: int) -> None:
        """Set the first `length` tokens of a place to zero, on a CPU."""
        for array in self._shared:
            array[place, :, :length] = 0

    def copy(self, place: int, other: Slab, to: int, length: int) -> None:
        """Copy the first `length` tokens of a place to a place of another board."""
        for index in range(len(self.arrays)):
            if self._shared:
                other._shared[index][to, :, :length] = self._shared[index][place, :, :length]
            else:
                array = other.arrays[index].numpy()
                array[to, :, :length] = self.arrays[index].numpy()[place, :, :length]
                other.arrays[index].update_inplace(array)


class SlotPool:
    """All boards of an engine.

    Args:
        kept: of a key, and of a value.
        clean: places are all zeros where no session has written; for attention that reads what it masks.
    """

    def __init__(self, device: Device, blocks: int, kept: tuple[Kept, Kept], clean: bool = False) -> None:
        self.device, self.blocks, self.kept, self.clean = device, blocks, kept, clean
        self.token_bytes = blocks * sum(map(math.prod, kept)) * np.dtype(device.dtype).itemsize
        self.boards: list[Slab] = []

    def take(self, tokens: int) -> Slot:
        """A place for a session of so many tokens.

        Raises:
            MemoryError: no memory for another board.
        """
        room = room_for(tokens)
        for board in self.boards:
            if board.room == room and None in board.seats:
                break
        else:
            fitting = BOARD // (room * self.token_bytes) if self.device.addressable else 1
            board = Slab(self.device, self.blocks, self.kept, min(max(fitting, 1), PLACES), room)
            self.boards.append(board)
        place = board.seats.index(None)
        board.seats[place] = seat = Slot(board, place)
        return seat

    def fit(self, seat: Slot, tokens: int) -> None:
        """Move the session to a larger place if this one has no room for so many tokens.

        Raises:
            MemoryError: as `take`; the session stays where it is.
        """
        if tokens >= seat.board.room:
            larger = self.take(tokens)
            seat.board.copy(seat.place, larger.board, larger.place, seat.length)
            self._leave(seat)
            seat.board, seat.place, seat.reach = larger.board, larger.place, 0
            seat.board.seats[seat.place] = seat
        seat.reach = max(seat.reach, tokens)

    def give_back(self, seat: Slot) -> None:
        """End a session."""
        self._leave(seat)

    def _leave(self, seat: Slot) -> None:
        seat.board.seats[seat.place] = None
        if not any(seat.board.seats):
            self.boards.remove(seat.board)
        elif self.clean:
            seat.board.clear(seat.place, seat.reach)

    def nbytes(self) -> int:
        """Bytes of the places that are taken."""
        return sum(
            sum(seat is not None for seat in board.seats) * board.room * self.token_bytes for board in self.boards
        )
