"""The page: files that a browser fetches from this gateway and from nowhere else.

`chatbot-ui/` is built into `static/app`; where that has not been done, `static/index.html` is a simpler chat page.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

STATIC = Path(__file__).parents[1] / "static"
FOR_EVER = "public, max-age=31536000, immutable"
HASHED = "_next/static/"  # files under it have a digest in their name
TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
WORTH = 1024  # bytes from which compressing pays


@dataclass(frozen=True)
class SitePage:
    """A file of the page. `policy`: for HTML, what a browser lets it do."""

    content: bytes
    media_type: str
    caching: str
    policy: str = ""

    @cached_property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:20]}"'

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.content, mtime=0)


@dataclass(frozen=True)
class StaticSite:
    """`files` by their path below `/`; the page itself is `index.html`."""

    files: Mapping[str, SitePage] = field(repr=False)

    @property
    def paths(self) -> frozenset[str]:
        """The paths at which it can be asked for; who asks for them need not show a key."""
        return frozenset({"/", *(f"/{name}" for name in self.files)})

    @property
    def folders(self) -> frozenset[str]:
        """Those at its top."""
        return frozenset(name.partition("/")[0] for name in self.files if "/" in name)

    def answer(self, request: Request) -> Response:
        """Raises: HTTPException: there is no such file."""
        page = self.files.get(request.url.path.lstrip("/") or "index.html")
        if page is None:
            raise HTTPException(404)
        headers = {
            "Cache-Control": page.caching,
            "ETag": page.tag,
            "Vary": "Accept-Encoding",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if page.policy:
            headers["Content-Security-Policy"] = page.policy
        if request.headers.get("if-none-match") == page.tag:
            return Response(status_code=304, headers=headers)
        content = page.content
        if len(content) >= WORTH and re.search(r"\bgzip\b", request.headers.get("accept-encoding", "")):
            content = page.compressed
            headers["Content-Encoding"] = "gzip"
        return Response(content, headers=headers, media_type=page.media_type)


def load(static: Path = STATIC) -> StaticSite:
    """The page as it was built, or else the simple one."""
    folder = static / "app"
    if not (folder / "index.html").is_file():
        return simple(static)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return StaticSite({path.relative_to(folder).as_posix(): _page(path, folder) for path in files})


def simple(static: Path = STATIC) -> StaticSite:
    """The page that needs no building: one file with its style and script in it."""
    return StaticSite({"index.html": _page(static / "index.html", static)})


def _page(path: Path, folder: Path) -> SitePage:
    content = path.read_bytes()
    # Not only from `mimetypes`: on Windows it repeats what the registry says, which may be wrong for .js.
    kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    caching = FOR_EVER if path.relative_to(folder).as_posix().startswith(HASHED) else "no-cache"
    policy = policy_of(content.decode("utf-8")) if path.suffix == ".html" else ""
    return SitePage(content, f"{kind}; charset=utf-8" if kind.startswith("text/") else kind, caching, policy)


def policy_of(html: str) -> str:
    """A policy that lets a page run the gateway's own files and the scripts that stand in it, and nothing else."""
    scripts = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", html, re.DOTALL)
    styles = re.findall(r"<style[^>]*>(.*?)</style>", html, re.DOTALL)
    return (
        f"default-src 'none'; script-src {_own(scripts)}; style-src {_own(styles)}; img-src 'self' data:; "
        "font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _own(inline: list[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in dict.fromkeys(inline))
    return " ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)])
