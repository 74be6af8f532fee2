"""A Hugging Face Hub on this machine, as far as downloads need one: `HF_ENDPOINT` names it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@contextlib.contextmanager
def serving_hub(models: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve local folders as models on branch `main`: the Hub's address, and the files downloaded so far."""
    files = {name: _files(folder) for name, folder in models.items()}
    downloaded: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, files, downloaded))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloaded
    finally:
        server.shutdown()
        server.server_close()


def _files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, files, downloaded, *args):
        self.files, self.downloaded = files, downloaded
        super().__init__(*args)

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        path = unquote(urlsplit(self.path).path).lstrip("/")
        name, _, file = path.partition(f"/resolve/{COMMIT}/")
        status, headers, body = 200, {}, self.files.get(name, {}).get(file)
        if body is not None:
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
            self.downloaded += [path] if with_body else []
        elif (listing := self.listing(path)) is not None:
            body = json.dumps(listing).encode()
        else:
            missing = "EntryNotFound" if name in self.files else "RepoNotFound"
            status, headers, body = 404, {"X-Error-Code": missing}, b""
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def listing(self, path):
        """What the API tells of a model: its commit and its files, or the tree of them."""
        for name, files in self.files.items():
            if path.startswith(f"api/models/{name}/tree/"):
                return [{"type": "file", "path": f, "oid": "0" * 40, "size": len(data)} for f, data in files.items()]
            if path == f"api/models/{name}" or path.startswith(f"api/models/{name}/revision/"):
                return {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
        return None

    def log_message(self, *_):
        pass
