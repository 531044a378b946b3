"""The chat page: one file, which fetches nothing from anywhere but this gateway."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Page:
    html: str
    headers: dict[str, str]


@cache
def chat_page() -> Page:
    """The page with a policy that lets a browser run its own script and style, and nothing else."""
    html = resources.files("openai_api").joinpath("static", "index.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {_hash('script', html)}; "
        f"style-src {_hash('style', html)}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(
        html,
        {
            "Content-Security-Policy": policy,
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


def _hash(element: str, html: str) -> str:
    found = re.search(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    assert found is not None, f"the page has no {element}"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
