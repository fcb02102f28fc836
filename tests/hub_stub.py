"""The few answers of a model hub that the real client needs, served on the loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REVISION = "12fd25f77366" + "a" * 28
DATE = "2024-01-01T00:00:00.000Z"


class Hub:
    """The few answers of the hub that a download needs."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        self.gated = False
        self.refusal: tuple[int, dict[str, str]] | None = None
        """The status and headers of every answer, where nothing is given out."""
        self.said: bytes | None = None
        """What every answer holds, where this is another server than a hub."""
        self.tokens: set[str] = set()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, format: str, *args: Any) -> None:
                hub.asked.append(self.path)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: http.server.BaseHTTPRequestHandler, body: bool) -> None:
        path = request.path.split("?")[0]
        self.tokens.add(request.headers.get("Authorization", ""))
        headers = {"Content-Type": "application/json"}
        status = 200
        if self.gated:
            status, data = 401, b"{}"
            headers["X-Error-Code"] = "GatedRepo"
            headers["X-Error-Message"] = "Access to this model is restricted."
        elif self.refusal is not None:
            (status, refused), data = self.refusal, b"{}"
            headers |= refused
        elif self.said is not None:
            data = self.said
        elif "/commits/" in path:
            data = json.dumps([{"id": REVISION, "title": "t", "message": "", "authors": [], "date": DATE}]).encode()
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            data = json.dumps({"id": "org/name", "sha": REVISION, "siblings": siblings}).encode()
        elif (name := path.rsplit("/", 1)[-1]) not in self.files:
            status, data = 404, b"{}"
            headers |= {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION}
        else:
            data = self.files[name]
            digest = hashlib.sha256(data).hexdigest()
            headers |= {"ETag": f'"{digest}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(key, value)
        request.end_headers()
        if body:
            request.wfile.write(data)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, answering while the block runs."""
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
