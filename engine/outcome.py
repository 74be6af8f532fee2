"""How a job ended, for `result.json` and the machine around it."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .errors import BUG_CODE, Interrupted, JobError
from .output import OutputFolder

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Where Kubernetes reads a container's last message, 4096 bytes at most."""
_MAX_MESSAGE: Final = 16_000
"""Characters; a hundred problems of a task have room."""


@dataclass(slots=True)
class Clock:
    """Seconds spent by phase. A phase may be entered any number of times; phases do not nest."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as part of phase `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


@dataclass(slots=True)
class Outcome:
    """What the job has done so far."""

    message: str = ""
    global_step: int = 0
    resumed_from_step: int = 0
    steps_trained: int = 0
    finished: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Name of each unreadable image, and why it is."""
    checkpoint_digest: str | None = None
    held_out_loss: float | None = None
    """The latest measured."""
    best_step: int | None = None
    """Where it was lowest, of those that can be compared with the latest."""
    clock: Clock = field(default_factory=Clock)
    may_overwrite: bool = False
    """A failure may be recorded in the output folder although there is a result in it."""

    def result(self, status: str, code: int, kind: str) -> dict[str, Any]:
        """The contents of `result.json`."""
        return {
            "status": status,
            "code": code,
            "kind": kind,
            "message": self.message,
            "global_step": self.global_step,
            "steps_trained": self.steps_trained,
            "resumed_from_step": self.resumed_from_step,
            "finished": self.finished,
            "seconds": {name: round(seconds, 3) for name, seconds in self.clock.seconds.items()},
            "peak_memory_bytes": peak_memory_bytes(),
            "skipped_images": len(self.skipped),
            "checkpoint_digest": self.checkpoint_digest,
            "heldout_loss": self.held_out_loss,
            "best_step": self.best_step,
        }

    def done(self) -> dict[str, Any]:
        """The contents of `result.json` after a success."""
        return self.result("done", 0, "done")


@contextmanager
def recording_failure(output: OutputFolder, outcome: Outcome) -> Iterator[None]:
    """Write `result.json` when the block fails, unless the folder holds something of another job's."""
    try:
        yield
    except BaseException as error:
        outcome.message = describe(error)
        may_record = output.claimed or output.is_untouched or outcome.may_overwrite
        if may_record and not output.refused:
            status = "interrupted" if isinstance(error, Interrupted) else "failed"
            with contextlib.suppress(JobError):  # the folder itself may be what failed; the first error counts
                output.write_result(outcome.result(status, exit_code(error), exit_kind(error)))
        raise


def exit_code(error: BaseException) -> int:
    """The exit code that says what happened."""
    return error.code if isinstance(error, JobError | Interrupted) else BUG_CODE


def exit_kind(error: BaseException) -> str:
    """The code in a word."""
    return error.kind if isinstance(error, JobError | Interrupted) else "bug"


def describe(error: BaseException) -> str:
    """One line for a person, whatever a stranger's names in it hold."""
    text = "".join(char if char.isprintable() else "?" for char in " ".join(str(error).split()))
    if len(text) > _MAX_MESSAGE:
        text = f"{text[: _MAX_MESSAGE * 3 // 4]} … {text[-_MAX_MESSAGE // 8 :]}"
    if isinstance(error, JobError | Interrupted):
        return text
    return f"a bug in this program: {type(error).__name__}: {text}; please report it with the traceback above"


def peak_memory_bytes() -> int:
    """The GPU's peak of allocated memory so far; without one, the process's peak resident set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_termination_message(message: str, path: Path = TERMINATION_LOG) -> None:
    """Leave the last message where Kubernetes looks for it, if there is such a place."""
    with contextlib.suppress(OSError):
        if not os.access(path, os.W_OK):
            return
        path.write_bytes(message.encode(errors="replace")[:4096])
