"""A web server on this machine for the tests of downloads: ranges, dropped connections, scripted answers."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server serves, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"v1"'
    drop_after: list[int] = field(
        default_factory=list
    )  # each answer with a file ends after the next such number of bytes
    statuses: list[int] = field(default_factory=list)  # answered first, one a request
    has_ranges: bool = True
    length: bool = True
    routes: dict[str, Callable[[str, dict], tuple[int, dict]]] = field(default_factory=dict)  # path -> JSON answers
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def log_message(self, *_):
        pass

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        site: Site = self.server.site
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if site.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            cut = site.drop_after.pop(0) if site.drop_after and self.path.split("?")[0] in site.files else len(body)
            self.wfile.write(body[:cut])

    def _handle(self) -> None:
        site: Site = self.server.site
        path = self.path.split("?")[0]
        sent = {name.lower(): value for name, value in self.headers.items()}
        site.requests.append((self.command, path, sent))
        if site.statuses:
            return self._answer(site.statuses.pop(0), b"", {"Retry-After": "0"})
        if path in site.redirects:
            return self._answer(302, b"", {"Location": site.redirects[path]})
        if path in site.routes:
            status, answer = site.routes[path](self.command, sent)
            return self._answer(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        if path not in site.files:
            return self._answer(404, b"", {})
        body = site.files[path]
        headers = {"ETag": site.etag} if site.etag else {}
        wanted = sent.get("range", "")
        is_same = sent.get("if-range", site.etag) == site.etag
        if wanted and site.has_ranges and is_same:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(body):
                return self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self._answer(206, body[start:], headers)
        return self._answer(200, body, headers)

    do_GET = do_HEAD = do_POST = _handle


@contextlib.contextmanager
def serve(**options) -> Iterator[Site]:
    """Serve a `Site` on 127.0.0.1 while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(**options)
    server.site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.site
    finally:
        server.shutdown()
        server.server_close()
