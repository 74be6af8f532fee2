"""Trackers: whoever is told of a training while it runs. No torch.

A tracker is one file in this folder and one row in `registry.py`. It is opened, told and closed in the job's first
process. It may fail: that is a warning in `result.json`, and changes neither the training nor its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from engine.core.console import NOTE, say
from engine.core.errors import first_line

if TYPE_CHECKING:
    from engine.results.history import StepReport
    from engine.results.outcome import Clock
    from engine.results.trackers.jsonl import ProgressLog
    from engine.task.plan.steps import StepRange


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedTraining:
    """What a tracker may need when it is opened."""

    step_range: StepRange
    """The task's steps."""
    step: int
    """The global step at which the training begins."""
    clock: Clock
    """Its watchers are told of each phase of the job."""
    log: ProgressLog


class Tracker(Protocol):
    """Is told of a training. Any exception that a method raises becomes a warning."""

    def step(self, report: StepReport) -> None:
        """Take the numbers of a step that was trained."""

    def event(self, name: str, **values: Any) -> None:
        """Take an event between two steps, with JSON-able values.

        There are `evaluation` (`heldout_loss`: a float, or None where it is not finite), `lora` and `images` (results
        of a step before the task's end).
        """

    def close(self) -> None:
        """Take the end of the training, however it ended."""


class Trackers:
    """Tells every tracker. One that fails is told the next time again, and warned of once."""

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}
        self._failed: set[str] = set()

    def open(self, name: str, opener: Callable[[TrackedTraining], Tracker], training: TrackedTraining) -> None:
        """Open a tracker, and tell it from now on."""

        def add() -> None:
            self._trackers[name] = opener(training)

        self._warning_of(name, add)

    def step(self, report: StepReport) -> None:
        """Tell all of a step that was trained."""
        for name, tracker in self._trackers.items():
            self._warning_of(name, partial(tracker.step, report))

    def event(self, event: str, **values: Any) -> None:
        """Tell all of an event between two steps."""
        for name, tracker in self._trackers.items():
            self._warning_of(name, partial(tracker.event, event, **values))

    def close(self) -> None:
        """Tell all that the training has ended."""
        for name, tracker in self._trackers.items():
            self._warning_of(name, tracker.close)

    def _warning_of(self, name: str, tell: Callable[[], None]) -> None:
        """Call `tell`; warn, once for each tracker, where it raises."""
        try:
            tell()
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                say(f"{NOTE}the tracker {name} failed ({first_line(error)}); the training goes on without it")
