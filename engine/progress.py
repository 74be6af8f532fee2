"""What a person and an operator's tools see of a running job: a bar or lines, and `progress.jsonl`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from . import storage
from .history import StepReport
from .plan import Schedule

LINE_SECONDS: Final = 2.0
_PLAIN_SECONDS: Final = 10.0


_voice = {"is_silent": False}


def keep_silent() -> None:
    """Another process of the job speaks for this one."""
    _voice["is_silent"] = True


def say(message: str) -> None:
    """One line for a person, on stderr, without disturbing a bar."""
    if _voice["is_silent"]:
        return
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


class Meter:
    """Progress of one countable piece of work: a bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, what: str, unit: str, total: int, *, start: int = 0) -> None:
        self._what, self._unit, self._total = what, unit, total
        self._bar: Any = (
            tqdm(desc=what, unit=f" {unit}", total=total, initial=start, file=sys.stderr)
            if sys.stderr.isatty() and not _voice["is_silent"]
            else None
        )
        self._next_line = time.monotonic() + _PLAIN_SECONDS

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total are done."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            if done == self._total:
                self._bar.close()
        elif done == self._total or time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _PLAIN_SECONDS
            say(f"{self._what}: {done}/{self._total} {self._unit}{', ' + note if note else ''}")

    def close(self) -> None:
        """Leave the terminal in order, finished or not."""
        if self._bar is not None:
            self._bar.close()


class TrainingLog:
    """`progress.jsonl`: a line at the start and one of the first step, then at least one every two seconds."""

    def __init__(self, path: Path, schedule: Schedule, *, owner: Path) -> None:
        self._schedule = schedule
        self._fields: dict[str, Any] = {}
        self._started = time.monotonic()
        self._steps = 0
        self._last_line = 0.0
        self._path = path
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        with storage.writing_to(path.parent):
            self._file = os.fdopen(storage.open_log(path, owner=owner), "a", encoding="utf-8")
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Log while the block trains; ends with a line of the last step."""
        self._fields = {"step": step, "loss": None, "learning_rate": None, "grad_norm": None}
        self._fields |= {"images_per_second": None, "eta_seconds": None}
        self._write("start")
        self._thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            self._thread.join()
            with self._file:
                self._write("end")

    def step(self, report: StepReport) -> str:
        """Record one trained step, and describe it in a few words."""
        self._steps += 1
        rate = self._steps / max(time.monotonic() - self._started, 1e-9)
        eta = (self._schedule.stop_step - report.step) / rate
        self._fields = {
            "step": report.step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "images_per_second": round(rate * self._schedule.visits_per_step, 3),
            "eta_seconds": round(eta, 1),
        }
        if self._steps == 1 or time.monotonic() - self._last_line >= LINE_SECONDS / 2:
            self._write("step")
        return (
            f"loss {report.loss:.4f}, lr {report.learning_rate:.2e}, {self._fields['images_per_second']:.1f} images/s"
        )

    def tell(self, event: str, **more: Any) -> None:
        """A line of an event between two steps."""
        self._write(event, **more)

    def _write(self, event: str, **more: Any) -> None:
        with self._lock, storage.writing_to(self._path.parent):
            self._last_line = time.monotonic()
            self._file.write(json.dumps({"event": event, **self._fields, **more}, allow_nan=False) + "\n")
            self._file.flush()

    def _repeat(self) -> None:
        while not self._stopped.wait(LINE_SECONDS / 4):
            if time.monotonic() - self._last_line >= LINE_SECONDS * 3 / 4:
                try:
                    self._write("alive")
                except Exception:  # the loop's own next write says so, in the right thread
                    return
