"""A web server on this machine for the tests of downloads: ranges, dropped connections, scripted answers."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        site, path = self.server.site, self.path.split("?")[0]
        site.requests.append((path, self.headers))
        body, headers = site.files.get(path, b""), {"ETag": site.etag} if site.etag else {}
        status = site.statuses.pop(0) if site.statuses else 200 if path in site.files else 404
        if path in site.redirects:
            status, headers = 302, {"Location": site.redirects[path]}
        elif "range" in self.headers and site.has_ranges and self.headers.get("if-range", site.etag) == site.etag:
            start = int(self.headers["range"].removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status, body = (206, body[start:]) if start < len(body) else (416, b"")
        if site.length:
            headers["Content-Length"] = str(len(body))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: site.drop_after.pop(0) if site.drop_after and path in site.files else None])

    do_POST = do_GET


@contextlib.contextmanager
def serve(**options):
    """Serve `files`, by path, while the block runs; `requests` are paths and headers. `statuses` are answered first, one a
    request; an answer with a file ends after the next of `drop_after` bytes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = {"files": {}, "redirects": {}, "drop_after": [], "statuses": [], "requests": [], "etag": '"v1"'}
    site |= {"has_ranges": True, "length": True, "url": f"http://127.0.0.1:{server.server_port}"}
    server.site = SimpleNamespace(**site | options)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.site
    finally:
        server.shutdown()
        server.server_close()
