"""Tensors, metadata and messages survive the way."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from patches.codec.nested import nested_compare, nested_flatten, nested_pack  # noqa: E402
from patches.codec.packing import MSGPackSerializer  # noqa: E402
from patches.codec.serialization import (  # noqa: E402
    DTYPES,
    deserialize_tensor_stream,
    deserialize_torch_tensor,
    serialize_torch_tensor,
    split_for_streaming,
)
from patches.codec.tensors import BatchTensorDescriptor, TensorDescriptor  # noqa: E402
from patches.network.messages import CompressionType, ExpertRequest, Tensor  # noqa: E402

scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5) | st.binary(max_size=5)
structures = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)


def roundtrip(message: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))


@given(dtype=st.sampled_from(sorted(DTYPES)), shape=st.lists(st.integers(0, 5), max_size=3), size=st.integers(1, 64))
def test_tensors_survive_the_way_whole_and_in_parts(dtype: str, shape: list[int], size: int) -> None:
    tensor = (torch.arange(max(1, torch.Size(shape).numel())) % 2)[: torch.Size(shape).numel()].reshape(shape)
    tensor = tensor.to(DTYPES[dtype])
    whole = deserialize_torch_tensor(roundtrip(serialize_torch_tensor(tensor)))
    assert whole.dtype == tensor.dtype
    assert torch.equal(whole, tensor)

    async def stream():  # type: ignore[no-untyped-def]
        for _ in range(2):
            for part in split_for_streaming(serialize_torch_tensor(tensor), size):
                assert len(part.buffer) <= size
                yield [roundtrip(part)]

    both = asyncio.run(deserialize_tensor_stream(stream()))
    assert len(both) == 2
    assert all(torch.equal(one, tensor) for one in both)


def test_half_the_bytes_for_numbers_that_are_near() -> None:
    tensor = torch.tensor([1.5, -2.25, 1e9], requires_grad=True)
    message = serialize_torch_tensor(tensor, CompressionType.FLOAT16)
    assert len(message.buffer) == 6
    back = deserialize_torch_tensor(roundtrip(message))
    assert back.dtype == torch.float32
    assert back.requires_grad
    assert back.tolist() == [1.5, -2.25, 65504.0]
    ids = torch.tensor([70000])
    assert torch.equal(deserialize_torch_tensor(serialize_torch_tensor(ids, CompressionType.FLOAT16)), ids)
    with pytest.raises(ValueError, match="QUANTILE_8BIT is not provided"):
        serialize_torch_tensor(tensor, CompressionType.QUANTILE_8BIT)


@pytest.mark.parametrize(
    "message",
    [
        Tensor(b"1234", [2], dtype="float32"),
        Tensor(b"1234", [1], dtype="os.system"),
        Tensor(b"1234", [1], dtype="float32", compression=5),
        Tensor(b"123", [1], dtype="float32"),
    ],
)
def test_what_is_no_tensor_is_refused(message: Tensor) -> None:
    with pytest.raises(ValueError, match=r"."):
        deserialize_torch_tensor(message)


def test_a_stream_that_ends_too_early_or_promises_too_much_is_refused() -> None:
    async def stream(*messages: Tensor):  # type: ignore[no-untyped-def]
        yield messages

    first, *_ = split_for_streaming(serialize_torch_tensor(torch.zeros(10)), 8)
    with pytest.raises(ValueError, match="in the middle"):
        asyncio.run(deserialize_tensor_stream(stream(first)))
    with pytest.raises(ValueError, match="at most"):
        asyncio.run(deserialize_tensor_stream(stream(Tensor(chunks=1 << 20))))


@given(structures)
def test_metadata_keeps_tuples_and_descriptors(structure: Any) -> None:
    descriptor = BatchTensorDescriptor(1, 8, dtype=torch.bfloat16, compression=CompressionType.FLOAT16)
    plain = TensorDescriptor((2, 3), dtype=torch.int64)
    value = {"args": (structure, [structure]), "schema": ((descriptor,), {"x": plain})}
    assert MSGPackSerializer.loads(MSGPackSerializer.dumps(value)) == value


def test_descriptors_describe_tensors() -> None:
    tensor = torch.zeros(4, 2, 3, dtype=torch.float16)
    descriptor = BatchTensorDescriptor.from_tensor(tensor, CompressionType.FLOAT16)
    assert (descriptor.shape, descriptor.compression) == ((None, 2, 3), CompressionType.FLOAT16)
    assert BatchTensorDescriptor.from_tensor(tensor.long(), CompressionType.FLOAT16).compression == 0
    zeros = TensorDescriptor((2, 5), dtype=torch.float64).make_zeros()
    assert (zeros.shape, zeros.dtype, int(zeros.sum())) == ((2, 5), torch.float64, 0)
    with pytest.raises(TypeError):
        descriptor.numel()


@given(structures)
def test_what_is_flattened_packs_again(structure: Any) -> None:
    leaves = list(nested_flatten(structure))
    packed = nested_pack(leaves, structure)
    assert packed == structure
    assert nested_compare(packed, structure)
    if leaves:
        with pytest.raises(ValueError, match="fewer leaves"):
            nested_pack(leaves[1:], structure)
        assert not nested_compare(structure, [structure])


def test_messages_survive_the_way() -> None:
    request = ExpertRequest("m.0 m.1", [Tensor(b"ab", [2], dtype="uint8")], b"meta")
    assert roundtrip(request) == request
    assert ExpertRequest().tensors is not ExpertRequest().tensors
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"uid": 5}), type=ExpertRequest)
