from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Fast
from transformers import PreTrainedTokenizerFast

from swarm.errors import SwarmError
from swarm.tokenizer import Tokenizer

pytestmark = pytest.mark.model
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    loaded = Tokenizer.load(smollm2)
    assert loaded is not None
    return loaded


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A vocabulary as sentencepiece makes them: spaces as U+2581, unknown characters as byte tokens."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁a", "a", "b", "▁hello", "!", ",", "é"]
    fast = Fast(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words[:3]])
    folder = tmp_path_factory.mktemp("pieces")
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", bos_token="<s>").save_pretrained(folder)
    loaded = Tokenizer.load(folder)
    assert loaded is not None
    return loaded


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> str:
    reader = tokenizer.detokenizer(skip)
    given_out = [reader.push(i) for i in ids]
    return "".join(given_out) + reader.flush()


def test_a_folder_without_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert Tokenizer.load(tmp_path) is None


def test_text_goes_through_ids_and_back(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("The capital of France is Paris, 2024. 🙂")) == (
        "The capital of France is Paris, 2024. 🙂"
    )


def test_numbers_are_read_digit_by_digit_as_the_model_was_trained(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("1984")
    assert [tokenizer.decode([i]) for i in ids] == ["1", "9", "8", "4"]


def test_a_chat_follows_the_template_of_the_model(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.chat(FRANCE), skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    closed = tokenizer.chat(FRANCE, add_generation_prompt=False)
    assert tokenizer.decode(closed, skip_special_tokens=False).endswith("France?<|im_end|>\n")


def test_messages_that_the_template_refuses_are_an_error_for_people(tokenizer: Tokenizer) -> None:
    with pytest.raises(SwarmError, match="refuses these messages"):
        tokenizer.chat([{"content": "no role"}])
    with pytest.raises(SwarmError, match="refuses these messages"):
        tokenizer.chat([{"role": "user", "content": ["parts"]}])


def test_a_model_without_chat_template_says_so(smollm2: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2 / name, tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded is not None and not loaded.has_chat_template
    with pytest.raises(SwarmError, match="no chat template"):
        loaded.chat(FRANCE)


def test_stop_ids_are_collected_from_all_that_name_them(smollm2: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.stop_ids == {2}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2 / name, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "text_config": {"eos_token_id": 7}}))
    loaded = Tokenizer.load(tmp_path)
    assert loaded is not None and loaded.stop_ids == {2, 5, 6, 7}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 49151), max_size=60), st.booleans())
def test_a_stream_of_any_ids_joins_to_what_decode_gives(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    assert stream(tokenizer, ids, skip) == tokenizer.decode(ids, skip)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.integers(128, 255), st.integers(1, 300)), max_size=150))
@example([0xF0, 0x9F, 0x99] * 40)
@example([0xC3] * 100 + [0xA9])
def test_long_runs_of_broken_characters_join_too(tokenizer: Tokenizer, data: list[int]) -> None:
    ids = [byte_ids(tokenizer)[byte % 256] for byte in data]
    assert stream(tokenizer, ids) == tokenizer.decode(ids)


def byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
    """Token ids that stand for one byte; those that the vocabulary lacks are left out."""
    found = {}
    for i in range(1000):
        if i not in tokenizer.special_ids and len(data := tokenizer.token_bytes(i)) == 1:
            found[data[0]] = i
    return {byte: found.get(byte, found[0x80]) for byte in range(256)}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_text_is_never_held_back_once_its_characters_are_complete(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)  # differs from the text where the vocabulary lacks a byte of a rare character
    reader = tokenizer.detokenizer()
    given_out = [reader.push(i) for i in ids]
    if "\N{REPLACEMENT CHARACTER}" not in whole:
        assert "".join(given_out) == whole
        assert reader.flush() == ""


def test_what_is_certain_is_given_out_at_once(tokenizer: Tokenizer) -> None:
    reader = tokenizer.detokenizer()
    assert [reader.push(i) for i in tokenizer.encode("Hello big world")] == ["Hello", " big", " world"]
    pushed = [reader.push(i) for i in tokenizer.encode("🙂!")]
    assert pushed[-2:] == ["🙂", "!"] and set(pushed[:-2]) == {""}


def test_a_character_that_never_becomes_complete_comes_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂")[:-1]
    reader = tokenizer.detokenizer()
    assert "".join(reader.push(i) for i in ids) == ""
    assert reader.flush() == tokenizer.decode(ids) == "\N{REPLACEMENT CHARACTER}"


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab é!,hello🙂日本"), max_size=30))
def test_leading_spaces_and_byte_tokens_of_sentencepiece_survive_a_stream(pieces: Tokenizer, text: str) -> None:
    ids = pieces.encode(text)
    assert stream(pieces, ids) == pieces.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, *range(259, 267)]), max_size=30))
def test_special_tokens_in_a_stream_do_not_eat_spaces(pieces: Tokenizer, ids: list[int]) -> None:
    assert stream(pieces, ids) == pieces.decode(ids)


def test_the_bytes_of_tokens_join_to_the_text(tokenizer: Tokenizer, pieces: Tokenizer) -> None:
    for text in ("Hello, world 🙂", "日本語 naïve", "a\n\tb"):
        assert b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text)) == text.encode()
    assert b"".join(pieces.token_bytes(i) for i in pieces.encode("a🙂 é")).strip() == "a🙂 é".encode()
    assert tokenizer.token_bytes(2) == b"<|im_end|>"
