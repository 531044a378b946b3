from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from swarm.errors import SwarmError
from swarm.models.fingerprint import conflict, fingerprint, sample_offsets

CONFIG = {"model_type": "llama", "rms_norm_eps": 1e-05, "rope_parameters": {"rope_theta": 10000.0}, "hidden_size": 8}
parts = st.dictionaries(st.sampled_from(["config", "index", "a.safetensors", "b.safetensors"]), st.sampled_from("xyz"))


def write_model(folder: Path, config: dict[str, object] = CONFIG, values: int = 5000, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = np.random.default_rng(seed).standard_normal(values).astype(np.float32)
    save_file({"model.embed_tokens.weight": weights}, folder / "model.safetensors")
    return folder


def test_two_copies_of_a_model_agree_and_another_fine_tune_is_told_apart(tmp_path: Path) -> None:
    first = fingerprint(write_model(tmp_path / "a"))
    assert first == fingerprint(write_model(tmp_path / "b"))
    assert set(first) == {"config", "model.safetensors"}
    assert all(len(digest) == 16 for digest in first.values())
    assert conflict(first, fingerprint(write_model(tmp_path / "c", seed=1))) == "model.safetensors"
    assert conflict(first, fingerprint(write_model(tmp_path / "d", values=5001))) == "model.safetensors"


def test_only_keys_that_change_the_computation_count(tmp_path: Path) -> None:
    base = fingerprint(write_model(tmp_path / "a"))["config"]
    same = {**CONFIG, "transformers_version": "4", "dtype": "float32", "_name_or_path": "x", "hidden_size": 8.0}
    assert fingerprint(write_model(tmp_path / "b", same))["config"] == base
    other = {**CONFIG, "rope_parameters": {"rope_theta": 500000.0}}
    assert conflict({"config": base}, fingerprint(write_model(tmp_path / "c", other))) == "config.json"


def test_a_span_and_the_whole_model_agree_on_what_both_have(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    index = {"weight_map": {"model.layers.0.w": "one.safetensors", "model.layers.1.w": "two.safetensors"}}
    for folder, names in ((whole, ("one", "two")), (part, ("two",))):
        write_model(folder).joinpath("model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for name in names:
            save_file({"w": np.full(10, len(name), np.float32)}, folder / f"{name}.safetensors")
    assert set(fingerprint(part)) == {"config", "index", "two.safetensors"}
    assert conflict(fingerprint(whole), fingerprint(part)) is None


def test_a_shard_that_was_cut_short_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "a")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:20])
    with pytest.raises(SwarmError, match=r"model\.safetensors.*cut short"):
        fingerprint(folder)


@given(st.integers(0, 1 << 20))
def test_a_change_in_the_header_or_the_first_or_last_bytes_is_always_seen(place: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_model(Path(name), values=100_000)
        before = fingerprint(folder)
        file = folder / "model.safetensors"
        data = bytearray(file.read_bytes())
        header = 8 + int.from_bytes(data[:8], "little")
        seen = [*range(8, header), *range(header, header + 4096), *range(len(data) - 4096, len(data))]
        data[seen[place % len(seen)]] ^= 1
        file.write_bytes(data)
        assert conflict(before, fingerprint(folder)) == "model.safetensors"


@given(st.integers(0, 1 << 42))
def test_samples_lie_inside_the_data_and_reach_both_ends(length: int) -> None:
    offsets = sample_offsets(length)
    assert offsets[0] == 0 and len(offsets) <= 16
    assert offsets[-1] + 4096 >= length
    assert all(0 <= at <= max(0, length - 4096) for at in offsets)


@given(parts, parts)
def test_a_conflict_is_symmetric_and_about_a_part_that_both_have(a: dict[str, str], b: dict[str, str]) -> None:
    named = conflict(a, b)
    assert named == conflict(b, a)
    assert conflict(a, a) is None
    assert (named is None) == all(a[part] == b[part] for part in a.keys() & b.keys())
