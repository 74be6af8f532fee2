"""The outcome of a job: `result.json`, the exit code and the message."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from engine import __version__
from engine.core.console import notes, timestamp
from engine.core.errors import BUG_CODE, Interrupted, JobError
from engine.results import host
from engine.results.output.folder import OutputFolder

_MAX_MESSAGE: Final = 16_000
"""Maximum number of characters; it suffices for a hundred problems in a task."""


@dataclass(slots=True)
class Clock:
    """Seconds spent in each phase. A phase may be entered any number of times; phases do not nest."""

    seconds: dict[str, float] = field(default_factory=dict)
    watchers: list[Callable[[str], None]] = field(default_factory=list)
    """Functions that are called with the name of each phase that begins, unless the same phase is entered again."""
    _last: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as part of phase `name`."""
        if name != self._last:
            self._last = name
            for watch in self.watchers:
                watch(name)
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


@dataclass(frozen=True, slots=True)
class Before:
    """The work of the job's earlier runs, up to the saved progress from which this run continues."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped: Sequence[tuple[str, str]] = ()
    peak_memory_bytes: int = 0

    def described(self) -> dict[str, Any]:
        """Return it as a JSON value, for the saved progress."""
        seconds = [[name, round(value, 3)] for name, value in self.seconds.items()]  # keeps the order of the phases
        return {"seconds": seconds, "skipped": self.skipped, "peak_memory_bytes": self.peak_memory_bytes}

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Before:
        """Return the value from its JSON form (`described`)."""
        skipped = [(name, reason) for name, reason in value["skipped"]]
        return cls(dict(value["seconds"]), skipped, value["peak_memory_bytes"])


def shares_of(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each phase in the sum of all phases' seconds."""
    total = max(sum(seconds.values()), 1e-9)
    return {name: value / total for name, value in seconds.items()}


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in (*one, *other)}


@dataclass(slots=True)
class Outcome:
    """The state of the job so far, and its outcome at the end."""

    started: str = field(default_factory=timestamp)
    """The time at which this process began, or was forked."""
    message: str = ""
    global_step: int = 0
    resumed_from_step: int = 0
    steps_trained: int = 0
    finished: bool = False
    newly_skipped: Callable[[], list[tuple[str, str]]] = list
    """Function that returns name and reason of each image that this process has found unreadable."""
    before: Before = field(default_factory=Before)
    checkpoint_digest: str | None = None
    held_out_loss: float | None = None
    """The latest held-out loss."""
    best_step: int | None = None
    """The step with the lowest held-out loss, among those comparable with the latest."""
    clock: Clock = field(default_factory=Clock)
    may_overwrite: bool = False
    """True if a failure may be recorded in the output folder although there is a result in it."""
    device: dict[str, Any] | None = None
    """The device as the manifest describes it; before it is opened, `host.expected_device`."""
    task_digest: str | None = None
    """The task's digest; None until the dataset has been read."""
    clips: Mapping[str, int] = field(default_factory=dict)
    """Counts of the dataset's clips; none for images."""
    is_introduced: bool = False
    """True if the log's first line is made and names the task's digest."""
    is_told_to_finish: bool = False
    """True if SIGUSR1 or `FINISH_NOW` has ended the task, or came when it was ending anyway."""

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name and reason of each image of the task that was found unreadable."""
        # An image in both lists counts once. One process may list a name twice, if one of two such images is held out.
        return list((Counter(self.before.skipped) | Counter(self.newly_skipped())).elements())

    def so_far(self) -> Before:
        """Return what a later run of the job gets as `before`."""
        return Before(
            seconds=_added(self.before.seconds, self.clock.seconds),
            skipped=self.skipped,
            peak_memory_bytes=max(self.before.peak_memory_bytes, peak_memory_bytes()),
        )

    def introduction(self) -> tuple[str, Mapping[str, Any]]:
        """Return the log's first line with what is known now, as text and as facts for JSON."""
        self.is_introduced = self.task_digest is not None
        return host.introduction(host.revision(), self.device, self.task_digest)

    def result(self, status: str, code: int, kind: str) -> dict[str, Any]:
        """Return the contents of `result.json`."""
        return {
            "status": status,
            "code": code,
            "kind": kind,
            "message": self.message,
            "global_step": self.global_step,
            "steps_trained": self.steps_trained,
            "resumed_from_step": self.resumed_from_step,
            "finished": self.finished,
            "finish_now": self.is_told_to_finish,
            "seconds": {name: round(seconds, 3) for name, seconds in self.clock.seconds.items()},
            "shares": {name: round(share, 3) for name, share in shares_of(self.clock.seconds).items()},
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_rss_bytes": peak_rss_bytes(),
            "skipped_images": len(self.skipped),
            **({"clips": dict(self.clips)} if self.clips else {}),
            "checkpoint_digest": self.checkpoint_digest,
            "heldout_loss": self.held_out_loss,
            "best_step": self.best_step,
            "started": self.started,
            "ended": timestamp(),
            "version": __version__,
            "revision": host.revision(),
            "device": self.device,
            "host": host.name(),
            "task_digest": self.task_digest,
            "warnings": notes(),
        }

    def done(self) -> dict[str, Any]:
        """Return the contents of `result.json` after a success."""
        return self.result("done", 0, "done")


@contextmanager
def recording_failure(output: OutputFolder, outcome: Outcome) -> Iterator[None]:
    """Write `result.json` if the block fails, unless the folder holds another job's result or progress."""
    try:
        yield
    except BaseException as error:
        outcome.message = describe(error)
        may_record = output.claimed or output.is_untouched or outcome.may_overwrite
        if may_record and not output.refused:
            status = "interrupted" if isinstance(error, Interrupted) else "failed"
            with contextlib.suppress(
                JobError
            ):  # the folder itself may have failed; the first error is the one to report
                output.write_result(outcome.result(status, exit_code(error), exit_kind(error)))
        raise


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error."""
    return error.code if isinstance(error, JobError | Interrupted) else BUG_CODE


def exit_kind(error: BaseException) -> str:
    """Return the name of the exit code for an error."""
    return error.kind if isinstance(error, JobError | Interrupted) else "bug"


def describe(error: BaseException) -> str:
    """Format an error as one printable line."""
    text = "".join(char if char.isprintable() else "?" for char in " ".join(str(error).split()))
    if len(text) > _MAX_MESSAGE:
        text = f"{text[: _MAX_MESSAGE * 3 // 4]} … {text[-_MAX_MESSAGE // 8 :]}"
    if isinstance(error, JobError | Interrupted):
        return text
    return f"a bug in this program: {type(error).__name__}: {text}; please report it with the traceback above"


def peak_memory_bytes() -> int:
    """Return the peak of allocated memory so far, in bytes: torch's on a GPU, else the whole process's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return peak_rss_bytes()


def peak_rss_bytes() -> int:
    """Return the peak of this process's main memory so far (resident set size), in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
