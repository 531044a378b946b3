"""Messages as a hostile member would send them: valid conversations, damaged in every way that we could think of."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from routing import wire

Frames = list[bytes]

_NUMBERS = (-1, 0, 1, 255, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)
_FLOATS = (float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, -0.0, 0.1)
_TEXTS = ("", "\0", "\x1b[2J", "line\nline", "x" * 300, "y" * 5000, "a/../../b", "\N{PILE OF POO}" * 64, "float64", "O")
_DTYPES = ("bfloat16", "float16", "float32", "float64", "int32", "int64", "uint8", "object", "", "V8")
OVERSIZED = wire.MAX_FRAME + 1


def plain(frames: list[bytes | memoryview]) -> Frames:
    return [bytes(frame) for frame in frames]


class Mutator:
    """Damages what it is given, always in the same way for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._ways: list[tuple[Callable[[Frames], Frames], int]] = [
            (self._structure, 30),
            (self._tensor, 16),
            (self._flip, 14),
            (self._cut, 8),
            (self._extend, 4),
            (self._noise, 6),
            (self._frames, 8),
            (self._splinter, 3),
            (self._version, 2),
            (self._many, 1),
        ]

    def conversation(self, messages: list[Frames], share: float = 0.5) -> list[Frames]:
        """The messages with some of them damaged, some lost, said twice or out of order, and noise in between."""
        spoken: list[Frames] = []
        for message in messages:
            if self.random.random() < 0.04:
                continue
            spoken.append(self.damaged(message) if self.random.random() < share else message)
            if self.random.random() < 0.08:
                spoken.append(self.random.choice(spoken))
            if self.random.random() < 0.04:
                spoken.append(self.noise())
        if len(spoken) > 1 and self.random.random() < 0.15:
            one, other = self.random.sample(range(len(spoken)), 2)
            spoken[one], spoken[other] = spoken[other], spoken[one]
        return spoken

    def damaged(self, frames: Frames) -> Frames:
        ways, weights = zip(*self._ways, strict=True)
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            frames = self.random.choices(ways, weights)[0](frames)
        return frames

    def noise(self) -> Frames:
        return [self.random.randbytes(self.random.randrange(0, 400)) for _ in range(self.random.randrange(1, 5))]

    def oversized(self) -> Frames:
        """A frame that no receiver may take."""
        return [bytes((wire.VERSION,)) * OVERSIZED]

    # --- ways to damage a message ------------------------------------------------------------------------------------

    def _structure(self, frames: Frames) -> Frames:
        """Another value, one too many or one too few, somewhere in the header."""
        header = _header(frames)
        if header is None:
            return self._flip(frames)
        containers = [node for node in _nodes(header) if isinstance(node, list | dict) and node]
        if not containers:
            return self._flip(frames)
        where = self.random.choice(containers)
        key = self.random.choice(list(where) if isinstance(where, dict) else range(len(where)))
        match self.random.randrange(8) if isinstance(where, list) else 0:
            case 6:
                del where[key]
            case 7:
                where.insert(key, self.value())
            case _:
                where[key] = self.value()
        return _with_header(header, frames)

    def _tensor(self, frames: Frames) -> Frames:
        """A tensor that is not what its header says, or one that nobody wants."""
        header = _header(frames)
        if not isinstance(header, list) or not header:
            return self._flip(frames)
        shape = [
            self.random.choice((0, 1, 2, 8, 61, 1000, 1 << 20, 1 << 40, (1 << 62) - 1)) for _ in range(self._few())
        ]
        match self.random.randrange(4):
            case 0:  # as it was, of another dtype
                told = header[-1] if isinstance(header[-1], list) and len(header[-1]) == 2 else [None, [1, 8]]
                header[-1] = [self.random.choice(_DTYPES), told[1]]
                return _with_header(header, frames)
            case 1:
                header[-1] = [self.random.choice(_DTYPES), shape]
                return _with_header(header, frames)
            case 2:  # a whole one of any shape and bytes
                rows, width = self.random.randrange(0, 40), self.random.choice((1, 7, 8, 9, 64))
                name = self.random.choice(_DTYPES[:3])
                size = rows * width * (4 if name == "float32" else 2)
                header[-1] = [name, [rows, width]]
                data = b"\xff" * size if self.random.random() < 0.3 else self.random.randbytes(size)
                return _with_header(header, [frames[0], data])
            case _:  # token ids of every kind
                ids = [self.random.choice((0, 1, 60, 61, 1 << 20, (1 << 31) - 1, -1)) for _ in range(self._few())]
                header[-1] = ["int32", [len(ids)]]
                return _with_header(header, [frames[0], b"".join(i.to_bytes(4, "little", signed=True) for i in ids)])

    def _flip(self, frames: Frames) -> Frames:
        which = self._which(frames)
        if which is None:
            return self.noise()
        damaged = bytearray(frames[which])
        for _ in range(self._few()):
            damaged[self.random.randrange(len(damaged))] ^= 1 << self.random.randrange(8)
        return [*frames[:which], bytes(damaged), *frames[which + 1 :]]

    def _cut(self, frames: Frames) -> Frames:
        which = self._which(frames)
        if which is None:
            return []
        return [*frames[:which], frames[which][: self.random.randrange(len(frames[which]))], *frames[which + 1 :]]

    def _extend(self, frames: Frames) -> Frames:
        which = self.random.randrange(len(frames)) if frames else None
        if which is None:
            return self.noise()
        longer = frames[which] + self.random.randbytes(self.random.choice((1, 4, 100)))
        return [*frames[:which], longer, *frames[which + 1 :]]

    def _noise(self, frames: Frames) -> Frames:
        """A valid beginning, then anything."""
        return [*frames[: self.random.randrange(len(frames) + 1)], *self.noise()]

    def _frames(self, frames: Frames) -> Frames:
        """Frames lost, doubled, out of order, or empty."""
        frames = list(frames)
        match self.random.randrange(4):
            case 0 if frames:
                frames.pop(self.random.randrange(len(frames)))
            case 1 if frames:
                frames.append(self.random.choice(frames))
            case 2:
                self.random.shuffle(frames)
            case _:
                frames.insert(self.random.randrange(len(frames) + 1), b"")
        return frames

    def _splinter(self, frames: Frames) -> Frames:
        """The tensor in frames of a few bytes, which is allowed, and tedious."""
        data = b"".join(frames[1:])[:600]
        return [*frames[:1], *(data[at : at + 3] for at in range(0, len(data), 3))]

    def _many(self, frames: Frames) -> Frames:
        return [*frames, *[b""] * 50]

    def _version(self, frames: Frames) -> Frames:
        return [bytes((self.random.randrange(256),)) + frame[1:] for frame in frames[:1]] + frames[1:]

    # --- values ------------------------------------------------------------------------------------------------------

    def value(self) -> object:
        choose = self.random.choice
        match self.random.randrange(9):
            case 0 | 1:
                return choose(_NUMBERS)
            case 2:
                return -choose(_NUMBERS[:9])
            case 3:
                return choose(_FLOATS)
            case 4:
                return choose(_TEXTS)
            case 5:
                return choose((None, True, False, b"\xff\xfe", {}, []))
            case 6:
                return [choose(_NUMBERS)] * choose((1, 300, 5000))
            case 7:
                return {choose(_TEXTS): choose(_NUMBERS), 7: None}
            case _:
                nested: object = []
                for _ in range(choose((3, 40, 900))):
                    nested = [nested]
                return nested

    def _few(self) -> int:
        return self.random.choice((1, 1, 2, 3, 8))

    def _which(self, frames: Frames) -> int | None:
        """A frame that is not empty, the header mostly."""
        full = [number for number, frame in enumerate(frames) if frame]
        if not full:
            return None
        return full[0] if self.random.random() < 0.7 else self.random.choice(full)


def _header(frames: Frames) -> object:
    try:
        return msgspec.msgpack.decode(frames[0][1:], strict=False)
    except (msgspec.DecodeError, IndexError, UnicodeDecodeError, RecursionError, ValueError):
        return None


def _with_header(header: object, frames: Frames) -> Frames:
    try:
        return [frames[0][:1] + msgspec.msgpack.encode(header), *frames[1:]]
    except (OverflowError, RecursionError, TypeError, ValueError):  # a value that msgpack itself cannot hold
        return [frames[0][: len(frames[0]) // 2], *frames[1:]]


def _nodes(node: object) -> list[object]:
    """The node and everything in it."""
    found, unseen = [node], [node]
    while unseen and len(found) < 2000:
        each = unseen.pop()
        inner = each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()
        found.extend(inner)
        unseen.extend(inner)
    return found
