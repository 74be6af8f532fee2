"""Write `progress.jsonl`, by which other programs follow a running job from start to end. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from engine.core.console import NOTE, say, timestamp
from engine.core.errors import OutputError
from engine.core.files import atomic_files
from engine.results.trackers.speed import Speed

if TYPE_CHECKING:
    from engine.results.history import StepReport
    from engine.task.plan.steps import StepRange

LINE_SECONDS: Final = 2.0
"""The longest time between two lines while the job trains."""
ALIVE_SECONDS: Final = 20.0
"""The longest time between two lines otherwise. A minute is promised, but imports delay other threads."""
_MEASURED: Final = ("loss", "learning_rate", "grad_norm", "images_per_second", "eta_seconds")


class ProgressLog:
    """The log of one of the job's processes. It appends to the lines of earlier processes.

    Nothing is written before `begin` or `claimed` allow it, since the output folder may hold another job's result;
    until then lines are buffered. These two raise OutputError if the file cannot be written. A later line that cannot
    be written is lost, with one warning. The main thread and the thread that writes `alive` need no lock: a line is one
    write.
    """

    def __init__(self, path: Path, *, step: Callable[[], int]) -> None:
        """
        Args:
            path: the file, in the output folder.
            step: returns the step reached as far as it is known, for lines outside the training.
        """
        self._path = path
        self._step = step
        self._phase: str | None = None
        self._fields: dict[str, Any] = {"step": 0, **dict.fromkeys(_MEASURED)}
        self._step_range: StepRange | None = None
        self._speed = Speed()
        self._has_step = False
        self._has_failed = False
        self._last_line = 0.0
        self._descriptors: list[int] = []
        """Descriptors of the file; the last one is written to, and the thread may still use an earlier one."""
        self._lines: list[bytes] | None = []
        """All lines so far; None once the folder is claimed."""
        self._is_cut = False
        """True if the file's last line is incomplete: the disk was full, or a process was killed."""
        self._is_handed_on = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Write the last line."""
        if self._thread.ident is not None:
            self._stopped.set()
            self._thread.join()
            if not self._is_handed_on:
                self._write("end")
        for descriptor in self._descriptors:
            os.close(descriptor)

    def begin(self, *, may_write: bool) -> None:
        """Start logging; lines are buffered unless `may_write`."""
        if may_write:
            self._open()
        self._thread.start()

    def claimed(self, *, is_fresh: bool) -> None:
        """Start writing to the file: the output folder is this job's. `is_fresh`: other jobs' files were removed."""
        lines, self._lines = self._lines or [], None
        if self._thread.ident is None or (self._descriptors and not is_fresh):
            return
        self._open()
        for line in lines:
            self._put(line)

    def hand_on(self) -> None:
        """Leave writing the last line to the processes that this one starts."""
        self._is_handed_on = True

    def phase(self, name: str) -> None:
        """Write that a phase begins. The first phase is the start of the job."""
        is_first, self._phase = self._phase is None, name
        if self._thread.ident is None:
            return
        if self._step_range is None:
            self._fields = self._fields | {"step": self._step()}
        elif name == "train":
            self._speed.begin()
        self._write("start" if is_first else "phase")

    def follow(self, step_range: StepRange, step: int) -> Self:
        """Write at shorter intervals until `close`: a training of `step_range` begins at the global step `step`."""
        self._fields = {"step": step, **dict.fromkeys(_MEASURED)}
        self._step_range = step_range
        return self

    def step(self, report: StepReport) -> None:
        """Write a trained step, unless the last line is less than a second old."""
        assert self._step_range is not None, "`follow` comes before the first step"
        rate = self._speed.step()
        self._fields = {
            "step": report.step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "images_per_second": round(rate * self._step_range.visits_per_step, 3),
            "eta_seconds": round((self._step_range.stop_step - report.step) / rate, 1),
        }
        if not self._has_step or time.monotonic() - self._last_line >= LINE_SECONDS / 2:
            self._has_step = True
            self._write("step")

    def event(self, name: str, **values: Any) -> None:
        """Write an event between two steps."""
        self._write(name, **values)

    def close(self) -> None:
        """Write at the longer intervals again: the training has ended."""
        self._step_range = None

    def _open(self) -> None:
        with atomic_files.writing_to(self._path.parent):
            self._descriptors.append(atomic_files.open_log(self._path, owner=self._path.parent))
        self._is_cut = not _ends_with_a_line(self._path)

    def _write(self, event: str, **more: Any) -> None:
        self._last_line = time.monotonic()
        record = {"time": timestamp(), "event": event, "phase": self._phase, **self._fields, **more}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if self._lines is not None:
            self._lines.append(line)
        if self._descriptors:
            try:
                self._put(line)
            except OutputError as error:
                self._warn(error)

    def _warn(self, error: OutputError) -> None:
        if not self._has_failed:
            self._has_failed = True
            say(f"{NOTE}{self._path.name} has gaps: {error}")

    def _put(self, line: bytes) -> None:
        rest = b"\n" + line if self._is_cut else line
        with atomic_files.writing_to(self._path.parent):
            while rest:
                rest = rest[os.write(self._descriptors[-1], rest) :]
                self._is_cut = bool(rest)

    def _repeat(self) -> None:
        while not self._stopped.wait(LINE_SECONDS / 8):
            due = ALIVE_SECONDS if self._step_range is None else LINE_SECONDS * 3 / 4
            if time.monotonic() - self._last_line >= due:
                self._write("alive")


def _ends_with_a_line(path: Path) -> bool:
    """Return whether a file is empty or ends with a line break; also if it cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"
    return True
