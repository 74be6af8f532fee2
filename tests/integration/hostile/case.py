"""One hostile input: how it is made, and what the program has to say to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MIB = 1 << 20
Behaviour = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Serves bodies, and behaves as badly as it is told to, on this machine."""

    def __init__(self) -> None:
        self._behaviours: dict[str, Behaviour] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.asked.append(self.path)
                self.close_connection = True
                server._behaviours[self.path.partition("?")[0]](self)

            def log_message(self, *args):
                pass

            def handle(self):
                with suppress(OSError):
                    super().handle()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, behaviour: Behaviour | bytes) -> str:
        """Where this body, or this behaviour, is found."""
        name = f"/{len(self._behaviours)}"
        self._behaviours[name] = body(behaviour) if isinstance(behaviour, bytes) else behaviour
        return f"http://127.0.0.1:{self.port}{name}"


def body(data: bytes, status: int = 200, **headers: str) -> Behaviour:
    """A plain answer. `_` in a header's name stands for `-`."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


@dataclass(frozen=True, slots=True)
class Place:
    """A case's own folders, a server, and what all cases share: a model and, of a trained task, a checkpoint."""

    root: Path
    server: Server
    model: Path
    images: Path
    checkpoint: Path
    video_model: Path

    @property
    def inputs(self) -> Path:
        """Where a case puts its files."""
        return self.root / "inputs"

    @property
    def secret(self) -> Path:
        """A real image outside all that a stranger may reach."""
        return self.root / "secret.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What goes in, and what must come out."""

    make: Callable[[Place], Mapping[str, Any]]
    """Returns what it changes in the task, at dotted keys; `flags` are flags, `raw` changes its text."""
    code: int
    """-1: any of 0, 3 and 5, as it comes."""
    words: tuple[str, ...] = ()
    """In the one line of the error; for code 0, anywhere in what is printed."""
    train: bool = False
    """Only the whole job finds it; else `--plan` does."""
    seconds: float = 60.0
    memory: int = 400 * MIB
    """Bytes of memory that the job may use beyond what it starts with."""
    connects: bool = False
    """Whether it may connect to the test's server."""
    variables: Mapping[str, str] = field(default_factory=dict)
    quick: bool = False
    """Stands for its kind in the default run."""


Cases = dict[str, Case]
