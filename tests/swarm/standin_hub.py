"""A server that speaks as much of the Hugging Face hub's protocol as fetching a model takes."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandInHub:
    """Serves `files`: repository to file name to content.

    Attributes:
        asked: the downloads that were asked for, as (file name, first byte).
        cut_after: break the first download after that many bytes; 0: none.
        refuse: status and error code for every request.
    """

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        self.files = files
        self.asked: list[tuple[str, int]] = []
        self.cut_after = 0
        self.refuse: tuple[int, str] | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet: the tests look at `asked`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        if self.refuse is not None:
            status, code = self.refuse
            self._send(request, status, b"", {"X-Error-Code": code}, body)
            return
        parts = request.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files[repo].items()]
            answer = {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False, "downloads": 0, "tags": []}
            self._send(request, 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)
            return
        name = parts[-1]
        data = self.files["/".join(parts[:2])][name]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if body:
            self.asked.append((name, start))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(request, 206 if start else 200, data[start:], headers, body)

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], body: bool
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if not body:
            return
        if 0 < self.cut_after < len(data):
            data, self.cut_after = data[: self.cut_after], 0
            request.close_connection = True
        request.wfile.write(data)
