"""A server on this machine whose answers follow a script, and a dataset to download from it."""

import os
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from engine.data.fetch import Limits
from tests.support.archives import zip_of

FILES = {"metadata.jsonl": b'{"file_name": "1.png", "text": "a"}\n', "1.png": os.urandom(300_000)}
ARCHIVE = zip_of(FILES)
OPEN = Limits(allow_private_urls=True)


class Server:
    """Answers each request by the next function of its script; the last one answers all others."""

    def __init__(self) -> None:
        self.script = []
        self.requests = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.requests.append((self.path, dict(self.headers)))
                answer = server.script[min(len(server.requests), len(server.script)) - 1]
                self.close_connection = True
                answer(self)

            def log_message(self, *args):
                pass

            def handle(self):
                with suppress(OSError):
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/data"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def answer(status=200, body=b"", **headers):
    def send(handler):
        handler.send_response_only(status)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        fields.setdefault("Content-Length", str(len(body)))
        for name, value in fields.items():
            if value is not None:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def ranged(body, etag='"v1"', cut=None, **headers):
    """Honours Range under If-Range; sends at most `cut` bytes before it closes the connection."""

    def send(handler):
        start = 0
        if handler.headers.get("Range") and handler.headers.get("If-Range") == etag:
            start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        handler.send_response_only(206 if start else 200)
        handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(body) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.end_headers()
        handler.wfile.write(body[start:][:cut])

    return send


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(tmp_path) -> list[str]:
    """Return the files in the cache besides whole content, pointers to it and locks."""
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    return [str(path) for path in files if path.suffix == ".part" or ".building" in str(path) or path.suffix == ".tmp"]
