"""A Hugging Face Hub on this machine that takes uploads: repositories, commits, and large files by the LFS protocol."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_test"
HANG = -1
"""In place of a status: the request is never answered."""


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    """The names of the files that were uploaded by the LFS protocol."""
    commits: list[str] = field(default_factory=list)
    """Their messages."""


@dataclass
class FakeHub:
    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path of each request."""
    trouble: Callable[[str], int | None] = lambda request: None
    """Returns the status of a failure for a request, `HANG`, or None for the right answer."""
    closing: Event = field(default_factory=Event)

    def commit_address(self, name: str) -> str:
        return f"{self.address}/{name}/commit/{len(self.repositories[name].commits):040}"


@contextlib.contextmanager
def taking_uploads() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, hub))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.socket.close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, hub: FakeHub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def do_GET(self):
        self.handle_request("GET")

    def do_POST(self):
        self.handle_request("POST")

    def do_PUT(self):
        self.handle_request("PUT")

    def handle_request(self, method):
        path = urlsplit(self.path).path.lstrip("/")
        body = self.body()
        self.hub.requests.append(f"{method} {path}")
        status = self.hub.trouble(f"{method} {path}")
        if status == HANG:
            self.hub.closing.wait()
            return
        if status is None and not path.startswith("blob/") and self.headers["Authorization"] != f"Bearer {TOKEN}":
            status = 401
        self.reply(status, {"error": "trouble"}) if status else self.reply(*self.answer(method, path, body))

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def reply(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, method, path, body):
        if path == "api/repos/create":
            return self.create(json.loads(body))
        if path == "api/validate-yaml":
            return 200, {}
        if path.startswith("blob/"):
            self.hub.blobs[path.removeprefix("blob/")] = body
            return 200, {}
        name = path.removeprefix("api/models/").removesuffix("/revision/main")
        if name.endswith(".git/info/lfs/objects/batch"):
            return 200, {"objects": [self.object(one) for one in json.loads(body)["objects"]]}
        name, action = next(
            (name.removesuffix(end), end) for end in ("/preupload/main", "/commit/main", "") if end in name
        )
        repository = self.hub.repositories.get(name)
        if repository is None:
            return 404, {"error": "not found"}
        if "preupload" in action:
            return 200, {"files": [self.mode(repository, one) for one in json.loads(body)["files"]]}
        if "commit" in action:
            self.commit(repository, [json.loads(line) for line in body.splitlines()])
        address = self.hub.commit_address(name)
        return 200, {"commitUrl": address, "commitOid": address[-40:], "id": name, "sha": address[-40:]}

    def create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        exists = name in self.hub.repositories
        if not exists:
            self.hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
        return 409 if exists else 200, {"url": f"{self.hub.address}/{name}"}

    def mode(self, repository, file):
        name, is_large = file["path"], file["path"].endswith((".safetensors", ".png"))
        data, oid = repository.files.get(name), None
        if data is not None:
            oid = _sha256(data) if is_large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {"path": name, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False, "oid": oid}

    def object(self, wanted):
        upload = {"upload": {"href": f"{self.hub.address}/blob/{wanted['oid']}"}}
        return wanted | ({} if wanted["oid"] in self.hub.blobs else {"actions": upload})

    def commit(self, repository, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                assert _sha256(self.hub.blobs[value["oid"]]) == value["oid"]
                repository.files[value["path"]] = self.hub.blobs[value["oid"]]
                repository.lfs.add(value["path"])

    def log_message(self, *_):
        pass


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
