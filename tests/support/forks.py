"""The program in forked children of one process that has imported it: see `fork_server.py`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.harness import ENTRYPOINT, PATIENCE, Finished, clean_environment, shared_server
from tests.support.witness import Orders

MEMORY_BYTES = 6 << 30
"""Of private memory: a run that wants more is ended before it ends the machine."""


class ForkedProcess:
    """A forked job: what the tests use of `subprocess.Popen`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid: int = self._answer()["pid"]
        self.returncode: int | None = None
        self.peak_bytes = 0

    def _answer(self) -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):  # no byte of the next line: `wait` must see that it is there
            byte = self._connection.recv(1)
            assert byte, "the fork server died"
            line += byte
        return json.loads(line)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"job {self.pid}", timeout or 0.0)
            answer = self._answer()
            self.returncode, self.peak_bytes = answer["code"], answer["peak_bytes"]
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """A process that forks jobs of the program; any number of threads may ask."""

    def __init__(self, scratch: Path, *, heavy: bool) -> None:
        """`heavy`: torch and the model's classes are imported beforehand; `--plan` needs neither."""
        self._scratch = scratch
        self._runs = 0
        self._base = clean_environment(scratch)
        # Short: the address of a socket has at most 107 bytes. Abstract: it leaves no file.
        self._address = f"\0sd-lora-task-forks-{os.getpid()}-{id(self):x}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server", "heavy" if heavy else "light", self._address[1:]],
            # NumPy's own thread pool would be lost in a fork.
            env=self._base | {"PYTHONPATH": str(ENTRYPOINT.parent), "OPENBLAS_NUM_THREADS": "1"},
            cwd=scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the fork server died"

    def start(
        self,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path,
        umask: int = -1,
        user: int | None = None,
        memory: int | None = None,
        orders: Orders | None = None,
    ) -> ForkedProcess:
        """Start one job. Its output goes to `log` with the suffixes `.out` and `.err`."""
        request = {
            "argv": list(argv),
            "env": dict(env),
            "cwd": str(cwd),
            "umask": umask,
            "user": user,
            "memory": memory,
            "stdout": str(log.with_suffix(".out")),
            "stderr": str(log.with_suffix(".err")),
            "orders": asdict(orders) if orders is not None else None,
        }
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        connection.sendall(json.dumps(request).encode() + b"\n")
        return ForkedProcess(connection)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=PATIENCE)


@contextlib.contextmanager
def fork_server(scratch: Path, *, heavy: bool) -> Iterator[WitnessedRuns]:
    """Runs of the program under a witness, for the length of the block.

    Those with torch are forked from the process that `harness.start_job` forks its jobs from, which takes seconds to
    start: it must be within `using_scratch`.
    """
    if heavy:
        yield WitnessedRuns(shared_server(), scratch)
        return
    server = ForkServer(scratch, heavy=False)
    try:
        yield WitnessedRuns(server, scratch)
    finally:
        server.close()


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


class WitnessedRuns:
    """Whole runs of the program, each in a forked child that is watched from the inside."""

    def __init__(self, server: ForkServer, scratch: Path) -> None:
        self._server = server
        self._scratch = scratch
        self.cache = scratch / "cache"
        self._runs = iter(range(1, 1 << 60))

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
        log = self._scratch / f"run-{next(self._runs)}"
        arguments = [*map(str, flags), "--output-dir", str(out)]
        if task is not None:
            path = log.with_suffix(".json")
            path.write_bytes(task if isinstance(task, bytes) else json.dumps(task).encode())
            arguments += ["--task", str(path)]
        report = log.with_suffix(".seen")
        started = time.monotonic()
        process = self._server.start(
            arguments,
            log=log,
            env=clean_environment(self._scratch) | (env or {}),
            cwd=cwd or self._scratch,
            umask=umask,
            user=user,
            memory=memory,
            orders=Orders(report=str(report), **orders),
        )
        timed_out = False
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.kill()
            code = process.wait(30)
        finished = Forked(
            code=code,
            stdout=log.with_suffix(".out").read_text(errors="replace"),
            stderr=log.with_suffix(".err").read_text(errors="replace"),
            out=out,
            seen=[(kind, what) for kind, what in map(json.loads, report.read_text().splitlines())],
            seconds=time.monotonic() - started,
            peak_bytes=process.peak_bytes,
            timed_out=timed_out,
        )
        for name in self._scratch.glob(f"{log.name}.*"):
            name.unlink()
        if finished.code not in (70, -9):
            assert "Traceback" not in finished.stderr, finished.stderr
        return finished
