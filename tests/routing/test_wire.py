from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing import wire
from tests.routing.material import DTYPES, array_of, messages

PING = wire.Ping(7)


def as_received(frames: list[bytes | memoryview]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


@given(messages, st.none() | st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4)))
def test_every_message_arrives_as_it_was_sent(message: wire.Message, tensor: tuple[str, list[int]] | None) -> None:
    array = None if tensor is None else array_of(tensor[0], tuple(tensor[1]))
    received, data = wire.decode(as_received(wire.encode(message, array)))
    assert received == message
    if array is None:
        assert data is None
    else:
        assert data is not None and (data.dtype, data.shape) == (array.dtype, array.shape)
        assert data.tobytes() == array.tobytes()
        assert not data.flags.writeable


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_large_arrays_travel_in_bounded_frames(dtype: str, extra: int) -> None:
    each = wire._DTYPES[dtype].itemsize
    array = array_of(dtype, (2 * wire.CHUNK // each + extra,))
    frames = as_received(wire.encode(PING, array))
    *full, last = [len(frame) for frame in frames[1:]]
    assert set(full) == {wire.CHUNK} and 0 < last <= wire.CHUNK
    assert wire.decode(frames)[1].tobytes() == array.tobytes()  # type: ignore[union-attr]


def test_arrays_that_lie_otherwise_in_memory_arrive_the_same() -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    for odd in (array.T, array[::2, ::-1], array.astype(">i4")):
        received = wire.decode(as_received(wire.encode(PING, odd)))[1]
        assert received is not None
        np.testing.assert_array_equal(received, odd)


def test_what_is_no_part_of_the_protocol_is_not_sent() -> None:
    with pytest.raises(wire.WireError, match="float64"):
        wire.encode(PING, np.zeros(3))
    with pytest.raises(wire.WireError, match="limit"):
        wire.encode(PING, np.broadcast_to(np.uint8(0), (wire.MAX_TENSOR + 1,)))


@given(st.lists(st.binary(max_size=64), max_size=4), st.booleans())
def test_noise_is_refused_and_nothing_else_happens(frames: list[bytes], right_version: bool) -> None:
    if right_version and frames:
        frames[0] = bytes([wire.VERSION]) + frames[0]
    with pytest.raises(wire.WireError):
        wire.decode(frames)


@given(messages, st.booleans(), st.data())
def test_a_damaged_message_is_refused_or_another_message(
    message: wire.Message, tensor: bool, data: st.DataObject
) -> None:
    frames = as_received(wire.encode(message, array_of("float32", (3, 2)) if tensor else None))
    for _ in range(data.draw(st.integers(1, 3))):
        which = data.draw(st.integers(0, len(frames) - 1))
        frame = bytearray(frames[which])
        at = data.draw(st.integers(0, len(frame)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip" if at < len(frame):
                frame[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del frame[at:]
            case "insert":
                frame[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "repeat":
                frames.append(bytes(frame))
        frames[which] = bytes(frame)
    try:
        received, _ = wire.decode(frames)
    except wire.WireError:
        return
    assert isinstance(received, wire.Message)


tensors = st.tuples(
    st.sampled_from([*DTYPES, "float64", "object", ""]),
    st.lists(st.sampled_from([0, 1, 2, 1 << 20, 1 << 61]), max_size=9),
)


@given(tensors, st.lists(st.binary(max_size=16), max_size=3))
def test_no_announced_shape_does_harm(tensor: tuple[str, list[int]], chunks: list[bytes]) -> None:
    header = bytes([wire.VERSION]) + msgspec.msgpack.encode([["Ping", 7], tensor])
    try:
        _, array = wire.decode([header, *chunks])
    except wire.WireError:
        return
    assert array is not None and array.nbytes == sum(map(len, chunks))


HEAD = bytes([wire.VERSION])


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "empty"),
        ([HEAD], "empty"),
        ([bytes([wire.VERSION + 1]) + msgspec.msgpack.encode([["Ping", 7], None])], "update the older one"),
        ([HEAD + msgspec.msgpack.encode([["Ping", 7], None]), b"x"], "no header announces"),
        ([HEAD + msgspec.msgpack.encode([["Ping", 7], ["float32", [2]]]), b"1234567"], "7 bytes for a tensor of 8"),
        ([HEAD + msgspec.msgpack.encode([["Ping", 7], ["uint8", [wire.MAX_TENSOR + 1]]])], "at most"),
        ([HEAD + msgspec.msgpack.encode([["Ping", -7], None])], "malformed"),
        ([HEAD + msgspec.msgpack.encode([["Launch", 7], None])], "malformed"),
        ([HEAD + b"\x91" * 10_000], "malformed"),
        ([HEAD + msgspec.msgpack.encode([["Ping", 7], ["uint8", [0, 1 << 61, 1 << 61]]])], "shape"),
    ],
)
def test_a_refusal_says_why(frames: list[bytes], reason: str) -> None:
    with pytest.raises(wire.WireError, match=reason):
        wire.decode(frames)


# --- the page that describes the protocol ----------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_the_page_is_of_this_version() -> None:
    assert f"Version {wire.VERSION}." in PAGE


def test_the_page_lists_every_message() -> None:
    names = {message.__name__ for message in get_args(wire.AnyMessage)}
    assert len(names) > 30
    assert not {name for name in names if f"`{name}`" not in PAGE}


@pytest.mark.parametrize("codes", [wire.RefusalCode, wire.FailureCode])
def test_the_page_lists_every_code_and_no_other(codes: type[StrEnum]) -> None:
    kind = "Refused" if codes is wire.RefusalCode else "Failed"
    table = PAGE.partition("## Codes")[2].partition(f"Of `{kind}`")[2].partition("\nOf `")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(codes)


def test_a_refusal_with_a_code_of_a_newer_peer_can_be_read() -> None:
    message, _ = wire.decode(wire.encode(wire.Refused("not_known_yet", "because")))  # type: ignore[arg-type]
    assert isinstance(message, wire.Refused) and message.code == "not_known_yet"
    with pytest.raises(wire.WireError):
        wire.decode(wire.encode(wire.Failed("s" * 32, 0, "not_known_yet", "because")))  # type: ignore[arg-type]
