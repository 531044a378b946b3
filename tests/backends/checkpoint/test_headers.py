"""A header is believed in nothing: whatever bytes a file has, they are tensors inside the file or one error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from backends import BackendError
from backends.checkpoint import headers
from backends.checkpoint.headers import INDEX, StoredTensor, read_header, read_index


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("headers") / "model.safetensors"
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}, file)
    return file


def test_a_tensor_lies_where_its_header_says(shard: Path) -> None:
    data, tensors = shard.read_bytes(), read_header(shard)
    assert tensors.keys() == {"a", "b"}
    a = tensors["a"]
    assert a == StoredTensor("F32", (2, 3), 24, a.offset)
    np.testing.assert_array_equal(np.frombuffer(data[a.offset : a.offset + a.nbytes], np.float32), np.arange(6))


def framed(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


DAMAGED = [
    b"",
    b"\x01",
    framed(b"{}")[:-1],
    framed(b"[]"),
    framed(b"no JSON"),
    framed(b"[" * 100_000),
    framed(json.dumps({"a": {"dtype": "F32", "shape": [1]}}).encode()),
    framed(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(), b"123"),
    framed(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}).encode(), b"1234"),
    framed(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}).encode(), b"1234"),
]


@pytest.mark.parametrize("data", DAMAGED)
def test_a_damaged_file_is_named(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    with pytest.raises(BackendError, match=r"x\.safetensors is (damaged|cut short).*download it again"):
        read_header(file)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_bytes_are_tensors_inside_the_file_or_one_error(data: st.DataObject, shard: Path, tmp_path: Path) -> None:
    content = bytearray(shard.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "x.safetensors"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tensors = read_header(file)
    except BackendError:
        return
    size = file.stat().st_size
    assert all(each.offset >= 8 and each.offset + each.nbytes <= size for each in tensors.values())


def test_a_header_has_a_limit(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_HEADER", 10)
    with pytest.raises(BackendError, match=r"header of \d+ bytes, over the limit of 10"):
        read_header(shard)


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b"}}']
)
def test_an_index_is_whole_and_stays_in_its_folder(index: str, tmp_path: Path) -> None:
    assert read_index(tmp_path) is None
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(BackendError, match=r"is damaged|outside the folder"):
        read_index(tmp_path)
