"""The program's own `main` in forked children of one process: hundreds of runs in minutes. See `fork_server.py`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.integration.harness import ENTRYPOINT, Finished
from tests.integration.witness import Orders

MEMORY_BYTES = 6 << 30
"""Of private memory: a run that wants more is ended before it ends the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked(Finished):
    """A run in a forked child, with what was seen of it."""

    seconds: float
    peak_bytes: int
    timed_out: bool
    seen: list[tuple[str, str]]

    @property
    def changes(self) -> list[str]:
        """The counted changes of the watched folder, in order."""
        return [what for kind, what in self.seen if kind == "change"]

    @property
    def misdeeds(self) -> list[tuple[str, str]]:
        """Changes outside the allowed folders, unpickling, programs started."""
        return [(kind, what) for kind, what in self.seen if kind not in ("change", "connect")]

    @property
    def connections(self) -> list[str]:
        """Addresses that were connected to."""
        return [what for kind, what in self.seen if kind == "connect"]


class ForkServer:
    """A process that forks runs of the program, one at a time; any number of threads may ask."""

    def __init__(self, scratch: Path, *, heavy: bool) -> None:
        """`heavy`: torch and the model's classes are imported beforehand; `--plan` needs neither."""
        self._scratch = scratch
        self.cache = scratch / "cache"
        self._lock = threading.Lock()
        self._runs = 0
        environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "HF_HUB_OFFLINE": "1", "DEVICE": "cpu"}
        self._base = environment | {"PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.fork_server", "heavy" if heavy else "light"],
            # NumPy's own thread pool would be lost in a fork.
            env=self._base | {"PYTHONPATH": str(ENTRYPOINT.parent), "OPENBLAS_NUM_THREADS": "1"},
            cwd=scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server died"
        return json.loads(line)

    def run(
        self,
        task: Mapping[str, Any] | bytes | None,
        out: Path,
        *flags: str | Path,
        env: Mapping[str, str] | None = None,
        seconds: float = 120.0,
        umask: int = 0o022,
        user: int | None = None,
        cwd: Path | None = None,
        memory: int = MEMORY_BYTES,
        **orders: Any,
    ) -> Forked:
        """Run the program to its end, at most `seconds` long. `orders` are the witness's."""
        with self._lock:
            self._runs += 1
            log = self._scratch / f"run-{self._runs}"
            arguments = [*map(str, flags), "--output-dir", str(out)]
            if task is not None:
                path = log.with_suffix(".json")
                path.write_bytes(task if isinstance(task, bytes) else json.dumps(task).encode())
                arguments += ["--task", str(path)]
            report = log.with_suffix(".seen")
            request = {
                "argv": arguments,
                "env": self._base | {"CACHE_DIR": str(self.cache), **(env or {})},
                "cwd": str(cwd or self._scratch),
                "umask": umask,
                "user": user,
                "memory": memory,
                "seconds": seconds,
                "stdout": str(log.with_suffix(".out")),
                "stderr": str(log.with_suffix(".err")),
                "orders": asdict(Orders(report=str(report), **orders)),
            }
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
        finished = Forked(
            stdout=log.with_suffix(".out").read_text(errors="replace"),
            stderr=log.with_suffix(".err").read_text(errors="replace"),
            out=out,
            seen=[(kind, what) for kind, what in map(json.loads, report.read_text().splitlines())],
            **answer,
        )
        for name in self._scratch.glob(f"{log.name}.*"):
            name.unlink()
        if finished.code not in (70, -9):
            assert "Traceback" not in finished.stderr, finished.stderr
        return finished

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(timeout=30)


@contextlib.contextmanager
def fork_server(scratch: Path, *, heavy: bool) -> Iterator[ForkServer]:
    """A `ForkServer` for the length of the block."""
    server = ForkServer(scratch, heavy=heavy)
    try:
        yield server
    finally:
        server.close()
