"""GGUF files as models: which file is meant, and what is made of it for clients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarm import SwarmError
from swarm.models import gguf, resolve
from swarm.models.fingerprint import conflict, fingerprint

REPO = ["README.md", "big-Q4_0.gguf", "big-q4_k_m.gguf", "big-Q8_0-00001-of-00002.gguf", "big-Q8_0-00002-of-00002.gguf"]


def test_a_file_of_the_hub_is_named_by_its_path_or_its_quantisation() -> None:
    assert gguf.on_hub("owner/big:Q4_K_M") == ("owner/big", "Q4_K_M")
    assert gguf.on_hub("owner/big/sub/big-Q4_0.gguf") == ("owner/big", "sub/big-Q4_0.gguf")
    for other in ("owner/big", "big", "a/b/c", "./x.gguf/y"):
        assert gguf.on_hub(other) is None
    assert gguf.choose(REPO, "Q4_K_M", "owner/big") == ["big-q4_k_m.gguf"]
    assert gguf.choose(REPO, "big-Q4_0.gguf", "owner/big") == ["big-Q4_0.gguf"]
    assert gguf.choose(REPO, "q8_0", "owner/big") == REPO[-2:]
    for wrong in ("Q4", "Q5_0", "other.gguf"):
        with pytest.raises(SwarmError, match="it has big-Q4_0"):
            gguf.choose(REPO, wrong, "owner/big")


def test_a_file_becomes_a_folder_that_points_to_it(swarm_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    file = folder / "big-Q8_0-00001-of-00002.gguf"
    file.write_bytes(b"GGUF" + bytes(1000))
    (folder / "big-Q8_0-00002-of-00002.gguf").write_bytes(b"GGUF")
    (folder / "tokenizer.json").write_text("{}")
    assert gguf.file_of(folder) == file
    (folder / "config.json").write_text("{}")
    found = resolve.resolve(str(file))
    assert found.name == "big-Q8_0"
    assert resolve.resolve(str(folder)).path == found.path
    assert json.loads((found.path / gguf.POINTER).read_text()) == {"file": str(file.resolve())}
    assert sorted(path.name for path in found.path.iterdir()) == ["config.json", gguf.POINTER, "tokenizer.json"]
    assert not list(found.path.parent.glob(".*"))

    same, other = tmp_path / "same", tmp_path / "other"
    for place, content in ((same, bytes(1000)), (other, bytes(999) + b"x")):
        place.mkdir()
        (place / file.name).write_bytes(b"GGUF" + content)
        for name in ("config.json", "tokenizer.json"):
            (place / name).write_text("{}")
    prints = [fingerprint(resolve.resolve(str(place / file.name)).path) for place in (folder, same, other)]
    assert conflict(prints[0], prints[1]) is None
    assert conflict(prints[0], prints[2]) == file.name


def test_several_models_in_a_folder_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(SwarmError, match=r"a\.gguf, b\.gguf"):
        resolve.resolve(str(tmp_path))


def test_a_tokenizer_that_cannot_be_read_is_said(swarm_home: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(SwarmError, match=r"broken\.gguf could not be converted"):
        resolve.resolve(str(file))
    assert not list((swarm_home / "models" / ".gguf").glob("*"))
