"""A web server on this machine for the tests of downloads: ranges, dropped connections, scripted answers."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server serves, and what it was asked for. An answer with a file ends after the next of `drop_after` bytes."""

    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"v1"'
    drop_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # answered first, one a request
    has_ranges: bool = True
    length: bool = True
    redirects: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # path, headers
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        site, path = self.server.site, self.path.split("?")[0]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if site.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: site.drop_after.pop(0) if site.drop_after and path in site.files else None])

    def _handle(self) -> None:
        site, path = self.server.site, self.path.split("?")[0]
        sent = {name.lower(): value for name, value in self.headers.items()}
        site.requests.append((path, sent))
        if site.statuses:
            return self._answer(site.statuses.pop(0))
        if path in site.redirects:
            return self._answer(302, Location=site.redirects[path])
        if path not in site.files:
            return self._answer(404)
        body, tag = site.files[path], {"ETag": site.etag} if site.etag else {}
        if "range" in sent and site.has_ranges and sent.get("if-range", site.etag) == site.etag:
            start = int(sent["range"].removeprefix("bytes=").split("-")[0])
            if start >= len(body):
                return self._answer(416, Content_Range=f"bytes */{len(body)}")
            return self._answer(206, body[start:], Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}", **tag)
        return self._answer(200, body, **tag)

    do_GET = do_POST = _handle


@contextlib.contextmanager
def serve(**options) -> Iterator[Site]:
    """Serve a `Site` on 127.0.0.1 while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.site = Site(**options, url=f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.site
    finally:
        server.shutdown()
        server.server_close()
