"""The chat page: complete in one file, and confined to this gateway."""

from __future__ import annotations

import base64
import hashlib
import re

import httpx
import pytest

from openai_api.page import chat_page
from tests.openai_api.engine import WholeModel


def test_the_page_asks_nobody_else_for_anything() -> None:
    html = chat_page().html
    assert not re.findall(r"https?://", html)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=(?!\"data:)", html)
    assert " style=" not in html and " onclick=" not in html  # the policy would forbid them


def test_the_policy_allows_the_pages_own_script_and_no_other() -> None:
    page = chat_page()
    policy = page.headers["Content-Security-Policy"]
    script = re.search(r"<script>(.*)</script>", page.html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "unsafe" not in policy


@pytest.mark.model
def test_the_page_is_served_at_the_root(url: str, engine: WholeModel) -> None:
    response = httpx.get(url)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text == chat_page().html
    assert httpx.head(url).status_code == 200
