"""The page: complete in this gateway's own files, confined to them, and kept by browsers only where that is right."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from openai_api.http.static_site import StaticSite, load, simple


class Nothing:
    """A swarm that serves no model."""

    def models(self) -> list[object]:
        return []


@pytest.fixture
def built(tmp_path: Path) -> StaticSite:
    files = {
        "index.html": '<html><script>first()</script><script src="/_next/static/chunks/a1.js"></script></html>',
        "_next/static/chunks/a1.js": "console.log(1);" * 200,
        "icon.svg": "<svg/>",
        "index.txt": "data",
        ".stamp": "not for browsers",
    }
    for name, text in files.items():
        path = tmp_path / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return load(tmp_path)


def test_the_simple_page_asks_nobody_else_for_anything() -> None:
    html = simple().files["index.html"].content.decode()
    assert not re.findall(r"https?://", html)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=(?!\"data:)", html)
    assert " style=" not in html and " onclick=" not in html  # the policy would forbid them


@pytest.mark.parametrize("which", ["simple", "built"])
def test_the_policy_allows_the_pages_own_scripts_and_no_other(which: str, built: StaticSite) -> None:
    page = (simple() if which == "simple" else built).files["index.html"]
    inline = re.search(r"<script>(.*?)</script>", page.content.decode(), re.DOTALL)
    assert inline is not None
    digest = base64.b64encode(hashlib.sha256(inline[1].encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in page.policy
    assert "default-src 'none'" in page.policy and "connect-src 'self'" in page.policy and "unsafe" not in page.policy


def test_without_a_built_page_the_simple_one_is_served(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>simple</html>")
    assert load(tmp_path).files["index.html"].content == b"<html>simple</html>"


def test_files_come_with_what_browsers_may_do_with_them(built: StaticSite, served: Callable[..., str]) -> None:
    url = served(Nothing(), site=built)
    page = httpx.get(url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache" and "sha256-" in page.headers["content-security-policy"]
    again = httpx.get(url, headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    script = httpx.get(f"{url}/_next/static/chunks/a1.js")
    assert "immutable" in script.headers["cache-control"]
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert script.headers["content-encoding"] == "gzip" and script.text == "console.log(1);" * 200
    plain = httpx.get(f"{url}/_next/static/chunks/a1.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.text == script.text
    assert httpx.head(url).status_code == 200 and not httpx.head(url).content
    assert httpx.get(f"{url}/icon.svg").headers["x-content-type-options"] == "nosniff"


def test_only_the_pages_files_are_served_and_they_need_no_key(built: StaticSite, served: Callable[..., str]) -> None:
    url = served(Nothing(), site=built, api_key="k")
    assert httpx.get(url).status_code == httpx.get(f"{url}/_next/static/chunks/a1.js").status_code == 200
    for path in ("/v1/models", "/api/swarm", "/_next/static/other.js", "/metrics"):
        assert httpx.get(url + path).status_code == 401, path
    headers = {"authorization": "Bearer k"}
    for path in ("/_next/static/other.js", "/.stamp", "/_next/%2e%2e/%2e%2e/index.html", "/nothing"):
        assert httpx.get(url + path, headers=headers).status_code == 404, path
    assert httpx.post(f"{url}/nothing", headers=headers).status_code == 404
