"""Tokenizer: text to token ids and back; chats by the model's own template; text out of a stream of tokens."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from swarm.errors import BadRequest, SwarmError

# What a peer needs to make and read token ids and to know when to stop; a server hands these out on request.
TOKENIZER_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
_VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_MAX_PENDING = 32  # tokens that may wait for the rest of a character before what is settled is cut off
_MAX_CHARACTER = 4  # bytes of the longest character in UTF-8, and so the most tokens that one can be spread over


class Tokenizer:
    """The tokenizer of a model folder.

    Attributes:
        stop_ids: ids that end a text.
        special_ids: ids that `decode` leaves out unless told otherwise.
    """

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.stop_ids = stop_ids
        added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._anchor = self.encode("a", add_special_tokens=False)
        self._anchor_text = self.decode(self._anchor)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer | None:
        """Read the tokenizer of a model; None where the folder has none.

        Raises:
            SwarmError: its files are damaged, or of a kind that needs code from the model's makers.
        """
        if not any((folder / name).exists() for name in _VOCABULARY):
            return None
        # Here, not at the top: transformers takes seconds to import, and brings torch where it is installed.
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise SwarmError(f"the tokenizer in {folder} cannot be read: {error}") from error
        return cls(tokenizer, _stop_ids(folder, tokenizer.eos_token_id))

    @property
    def fast(self) -> Any:
        """The tokenizer of transformers that this one stands on."""
        return self._tokenizer

    @property
    def chat_template(self) -> str:
        """The template's text; empty where there is none. Of several, the one for tools."""
        template = self._tokenizer.chat_template
        if isinstance(template, Mapping):
            template = template.get("tool_use") or template.get("default")
        return template or ""

    @property
    def special_texts(self) -> dict[str, str | None]:
        """The tokens that begin, end and fill up a text, as Hugging Face's `tokenizer_config.json` names them."""
        return {name: getattr(self._tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}

    @property
    def has_chat_template(self) -> bool:
        """Whether the model comes with a chat template."""
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; by default with what the model expects around it, such as a first token."""
        return [int(i) for i in self._tokenizer.encode(text, add_special_tokens=add_special_tokens)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Ids that the vocabulary does not have are left out; incomplete UTF-8 becomes U+FFFD."""
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **template_kwargs: Any
    ) -> list[int]:
        """Token ids of a conversation by the model's own template.

        Args:
            messages: with `role`, `content` and whatever else the template knows.
            template_kwargs: handed to the template, e.g. `tools`.

        Raises:
            BadRequest: the model has no chat template, or its template refuses these messages.
        """
        if not self.has_chat_template and "chat_template" not in template_kwargs:
            raise BadRequest("this model has no chat template: send a prompt instead of messages, or use a chat model")
        try:
            ids = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tokenize=True,
                return_dict=False,
                **template_kwargs,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise BadRequest(f"the model's chat template refuses these messages: {error}") from error
        return [int(i) for i in (ids["input_ids"] if isinstance(ids, Mapping) else ids)]

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for; a part of a character where the vocabulary splits characters."""
        text = self._text_in_context(token)
        if _BROKEN not in text:
            return text.encode()
        piece = str(self._tokenizer.convert_ids_to_tokens(token))
        if piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6:  # byte fallback of sentencepiece
            return bytes([int(piece[3:5], 16)])
        if all(character in _BYTES for character in piece):
            return bytes(_BYTES[character] for character in piece)
        return text.encode()

    def detokenizer(self, skip_special_tokens: bool = True, keep: Collection[int] = ()) -> Detokenizer:
        """A new reader of one stream of tokens.

        Args:
            keep: special tokens that are not skipped.
        """
        return Detokenizer(self, skip_special_tokens, keep)

    def special_id(self, text: str) -> int | None:
        """The id of a text that is one special token."""
        ids = self.encode(text, add_special_tokens=False)
        return ids[0] if len(ids) == 1 and ids[0] in self.special_ids else None

    def _text_in_context(self, token: int) -> str:
        """Text of a token inside a sentence: at the start of one, some tokenizers drop a space."""
        text = self.decode([*self._anchor, token], skip_special_tokens=False)
        if text.startswith(self._anchor_text):
            return text[len(self._anchor_text) :]
        return self.decode([token], skip_special_tokens=False)


class Detokenizer:
    """Detokenizer: the text of a stream of tokens, as early as it is certain and never a part of a character.

    What `push` and `flush` give, joined, is what `Tokenizer.decode` gives for all tokens at once. One exception:
    sentencepiece vocabularies that spell bytes as tokens spoil whole runs of them when one is invalid; what was given
    out before that is not taken back.

    Only the last tokens are decoded again at each step: from the last place where the text was certain, and one
    certain place before it, because what a token looks like may depend on its neighbour (leading spaces).
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True, keep: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids - frozenset(keep) if skip_special_tokens else frozenset()
        self._skip = skip_special_tokens and not keep
        self._window: list[int] = []
        self._fresh = 0  # where in the window the tokens since the last certain place begin
        self._given = ""  # of the window's text

    def push(self, token: int) -> str:
        """The text that has become certain with this token; often empty."""
        if token in self._hidden:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        certain = text.rstrip(_BROKEN)
        new = ""
        if len(certain) > len(self._given) and certain.startswith(self._given):
            new, self._given = certain[len(self._given) :], certain
        if certain == text and text == self._given:
            self._shorten(self._fresh)
        elif len(self._window) > _MAX_PENDING:
            new += self._cut(text)
        return new

    def flush(self) -> str:
        """The rest, with U+FFFD for a character that never became complete. The stream has ended."""
        text = self._decode(self._window)
        rest = text[len(self._given) :] if text.startswith(self._given) else ""
        self._window, self._fresh, self._given = [], 0, ""
        return rest

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip)

    def _shorten(self, at: int) -> None:
        """Keep the window from `at` on, unless that leaves nothing visible to the left of the next token."""
        kept = self._window[at:]
        text = self._decode(kept)
        if text and self._given.endswith(text):
            self._window, self._given = kept, text
        self._fresh = len(self._window)

    def _cut(self, text: str) -> str:
        """A long run of broken characters: give out the part of it that no later token can change."""
        for at in range(len(self._window) - _MAX_CHARACTER, 0, -1):
            left, right = self._decode(self._window[:at]), self._decode(self._window[at:])
            if left + right == text and left.startswith(self._given):
                new = left[len(self._given) :]
                self._window, self._fresh, self._given = self._window[at:], 0, ""
                return new
        return ""


def _stop_ids(folder: Path, eos: int | None) -> frozenset[int]:
    """Every id that ends a text, by generation_config.json, config.json (also of its text part) and the tokenizer."""
    found: set[int] = set() if eos is None else {int(eos)}
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for part in (content, content.get("text_config") or {}):
            ids = part.get("eos_token_id")
            found.update(int(i) for i in (ids if isinstance(ids, list) else [ids]) if i is not None)
    return frozenset(found)


def _byte_letters(plain: Iterable[int]) -> dict[str, int]:
    """The letters by which byte-level BPE writes bytes: printable ones stand for themselves, others from U+0100 on.

    Source: `bytes_to_unicode` of GPT-2's encoder.
    """
    letters = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if chr(byte) not in letters)
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_letters([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
