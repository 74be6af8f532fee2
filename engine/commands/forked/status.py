"""A worker's `status.json`: whether it lives, and what it does, for probes and operators."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final, Literal

from engine import __version__
from engine.core.console import timestamp
from engine.core.files import atomic_files
from engine.results import host

STATUS: Final = "status.json"
_SECONDS: Final = 10.0
"""The file is written at each change, and so often in between."""

State = Literal["starting", "idle", "running", "ended"]


class Status:
    """Writes `status.json` into a worker's folder."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._folder = folder
        self._facts: dict[str, Any] = {
            "worker": worker,
            "host": host.name(),
            "pid": os.getpid(),
            "version": __version__,
            "started": timestamp(),
            "done": 0,
            "failed": 0,
        }
        self._written = 0.0
        self.set("starting")

    def set(self, state: State, *, task: str | None = None, task_pid: int | None = None) -> None:
        """Write that the worker is now in this state, and which task it runs in which process. Raises OutputError."""
        now = {"state": state, "task": task, "task_pid": task_pid}
        if not now.items() <= self._facts.items():
            self._facts |= {**now, "since": timestamp()}
            self._write()

    def count(self, ended: Literal["done", "failed"]) -> None:
        """Count a task that this worker has ended."""
        self._facts[ended] += 1

    def keep(self) -> None:
        """Write the file again if it is ten seconds old, to show that the worker lives. Raises OutputError."""
        if time.monotonic() - self._written >= _SECONDS:
            self._write()

    def _write(self) -> None:
        data = json.dumps({**self._facts, "time": timestamp()}, indent=2).encode() + b"\n"
        with atomic_files.writing_to(self._folder):
            atomic_files.write_file(self._folder / STATUS, data, owner=self._folder)
        self._written = time.monotonic()
