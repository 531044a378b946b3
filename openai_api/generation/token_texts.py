"""Token texts: how single tokens are written in log-probabilities."""

from __future__ import annotations

from functools import lru_cache

from swarm.tokenizer import Tokenizer


class TokenTexts:
    """Texts of tokens. Remembered, because a tokenizer takes a tenth of a millisecond for each."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._bytes = lru_cache(maxsize=1 << 16)(tokenizer.token_bytes) if tokenizer else None

    def content(self, token: int) -> bytes | None:
        """The token's bytes; None without a tokenizer."""
        return self._bytes(token) if self._bytes else None

    def text(self, token: int) -> str:
        """The token's text; bytes that are a part of a character as OpenAI writes them: `bytes:\\xe2\\x80`."""
        content = self.content(token)
        if content is None:
            return f"token_id:{token}"
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
