"""`progress.jsonl`: what tools see of a running job, from its start to its end. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from engine.core.console import timestamp
from engine.core.errors import OutputError
from engine.core.files import atomic_files

if TYPE_CHECKING:
    from engine.results.history import StepReport
    from engine.task.plan.steps import StepRange

LINE_SECONDS: Final = 2.0
"""The longest time between two lines while the job trains."""
ALIVE_SECONDS: Final = 20.0
"""The same at any other time. A minute is promised, but importing keeps other threads waiting."""
_MEASURED: Final = ("loss", "learning_rate", "grad_norm", "images_per_second", "eta_seconds")


class ProgressLog:
    """The log of one process of the job, in the file that the processes before it wrote to.

    Nothing is written before somebody says that it may be: the output folder may hold another job's result. Until then
    lines are held back. There is no lock between the loop and the thread that tells of its life: a line is one write.
    """

    def __init__(self, path: Path, *, step: Callable[[], int]) -> None:
        """
        Args:
            path: of the file, in the output folder.
            step: gives the step reached as far as it is known, for lines outside the training.
        """
        self._path = path
        self._step = step
        self._phase: str | None = None
        self._fields: dict[str, Any] = {"step": 0, **dict.fromkeys(_MEASURED)}
        self._step_range: StepRange | None = None
        self._training_since: float | None = None
        self._steps = 0
        self._last_line = 0.0
        self._descriptors: list[int] = []
        """Descriptors of the file; the last one is written to, and the thread may still use an earlier one."""
        self._lines: list[bytes] | None = []
        """All lines so far, while the folder is not claimed."""
        self._is_handed_on = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Write the last line; where it cannot be written, that no longer changes how the job ends."""
        if self._thread.ident is not None:
            self._stopped.set()
            self._thread.join()
            with contextlib.suppress(OutputError):
                if not self._is_handed_on:
                    self._write("end")
        for descriptor in self._descriptors:
            os.close(descriptor)

    def begin(self, *, may_write: bool) -> None:
        """Log from now on; held back unless `may_write`."""
        if may_write:
            self._open()
        self._thread.start()

    def claimed(self, *, is_fresh: bool) -> None:
        """Write to the file: the output folder is this job's. `is_fresh`: what lay there of other jobs is gone."""
        lines, self._lines = self._lines or [], None
        if self._thread.ident is None or (self._descriptors and not is_fresh):
            return
        self._open()
        for line in lines:
            self._put(line)

    def hand_on(self) -> None:
        """Leave the last line to the processes that this one starts."""
        self._is_handed_on = True

    def phase(self, name: str) -> None:
        """Tell that a phase begins; the first one is the start of all."""
        is_first, self._phase = self._phase is None, name
        if self._thread.ident is None:
            return
        if self._step_range is None:
            self._fields = self._fields | {"step": self._step()}
        elif name == "train" and self._training_since is None:
            self._training_since = time.monotonic()
        self._write("start" if is_first else "phase")

    @contextlib.contextmanager
    def training(self, step_range: StepRange, step: int) -> Iterator[None]:
        """Tell more often while the block trains from this step on."""
        self._fields = {"step": step, **dict.fromkeys(_MEASURED)}
        self._step_range = step_range
        try:
            yield
        finally:
            self._step_range = None

    def step(self, report: StepReport) -> str:
        """Record one trained step, and describe it in a few words."""
        assert self._step_range is not None, "a step is trained inside `training`"
        now = time.monotonic()
        if self._training_since is None:
            self._training_since = now
        self._steps += 1
        rate = self._steps / max(now - self._training_since, 1e-9)
        self._fields = {
            "step": report.step,
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "images_per_second": round(rate * self._step_range.visits_per_step, 3),
            "eta_seconds": round((self._step_range.stop_step - report.step) / rate, 1),
        }
        if self._steps == 1 or now - self._last_line >= LINE_SECONDS / 2:
            self._write("step")
        return (
            f"loss {report.loss:.4f}, lr {report.learning_rate:.2e}, {self._fields['images_per_second']:.1f} images/s"
        )

    def tell(self, event: str, **more: Any) -> None:
        """Tell of an event between two steps."""
        self._write(event, **more)

    def _open(self) -> None:
        with atomic_files.writing_to(self._path.parent):
            self._descriptors.append(atomic_files.open_log(self._path, owner=self._path.parent))

    def _write(self, event: str, **more: Any) -> None:
        self._last_line = time.monotonic()
        record = {"time": timestamp(), "event": event, "phase": self._phase, **self._fields, **more}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if self._lines is not None:
            self._lines.append(line)
        if self._descriptors:
            self._put(line)

    def _put(self, line: bytes) -> None:
        with atomic_files.writing_to(self._path.parent):
            while line:
                line = line[os.write(self._descriptors[-1], line) :]

    def _repeat(self) -> None:
        while not self._stopped.wait(LINE_SECONDS / 8):
            due = ALIVE_SECONDS if self._step_range is None else LINE_SECONDS * 3 / 4
            if time.monotonic() - self._last_line >= due:
                try:
                    self._write("alive")
                except OutputError:  # the job's own next write says so, in the right thread
                    return
