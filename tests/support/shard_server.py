"""A server on this machine that serves files by their paths, with or without ranges, and counts the requests."""

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from engine.core.limits import Limits
from engine.data.fetch import Policy

OPEN = Limits(allow_private_urls=True)
HASTY = Policy(first_delay=0.01, max_attempts=4, sleep=lambda seconds: None)


class ShardServer:
    """Serves `files`; `ranges` and `etags` may be changed at any time, and `answer` may answer in its place."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.etags = True
        self.answer: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.close_connection = True
                server.requests.append((self.path, self.headers.get("Range")))
                if not server.answer(self):
                    server._serve(self)

            def log_message(self, *args):
                pass

            def handle(self):
                with suppress(OSError):
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.base = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, name: str) -> str:
        return self.base + name

    def whole(self) -> list[str]:
        """Return the paths that were asked for as a whole."""
        return [path for path, wanted in self.requests if wanted is None]

    def parts(self) -> list[str]:
        """Return the paths of which a part was asked for."""
        return [path for path, wanted in self.requests if wanted is not None]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = self.files.get(handler.path.lstrip("/").partition("?")[0])
        if body is None:
            self.send(handler, 404, b"")
            return
        etag = f'"{hash(body):x}"'
        headers = {"ETag": etag} if self.etags else {}
        found = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", handler.headers.get("Range", ""))
        if found and self.ranges and handler.headers.get("If-Range", etag) == etag:
            start, end = int(found[1]), min(int(found[2] or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            self.send(handler, 206, body[start : end + 1], **headers)
            return
        self.send(handler, 200, body, **headers)

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
        handler.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving_shards(files: dict[str, bytes]) -> Iterator[ShardServer]:
    server = ShardServer()
    server.files = dict(files)
    try:
        yield server
    finally:
        server.close()
