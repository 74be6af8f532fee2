"""Trackers: receivers of a training's steps and events. No torch.

A tracker is one file in this folder and one row in `registry.py`. It is opened, called and closed in the job's first
process. A tracker that fails causes a warning in `result.json`; the training and its bytes do not change.
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
    from engine.task.plan.steps import StepRange


class JobLog(Protocol):
    """The job's own log, which is open before and after the training."""

    def follow(self, step_range: StepRange, step: int) -> Tracker:
        """Return the tracker that logs a training of `step_range`, which begins at the global step `step`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedTraining:
    """The values with which a tracker is opened."""

    step_range: StepRange
    """The task's steps."""
    step: int
    """The global step at which the training begins."""
    clock: Clock
    """Its `watchers` are called at the start of each phase of the job."""
    log: JobLog
    noun: str = "image"
    """The word for one sample of the dataset: `image`, `clip`."""


class Tracker(Protocol):
    """A receiver of a training's steps and events. An exception in one of its methods becomes a warning."""

    def step(self, report: StepReport) -> None:
        """Receive the numbers of a trained step."""

    def event(self, name: str, **values: Any) -> None:
        """Receive an event between two steps, with JSON-able values.

        Events are `evaluation` (`heldout_loss`: a float, or None if it is not finite), and, of a step before the
        task's last one, `images` and the weights, whose event each method names (`Words.event`).
        """

    def close(self) -> None:
        """Receive the end of the training, whatever its reason."""


class Trackers:
    """Calls all trackers. One that fails is warned of once, and called again the next time."""

    def __init__(self) -> None:
        self._trackers: dict[str, Tracker] = {}
        self._failed: set[str] = set()

    def open(self, name: str, opener: Callable[[TrackedTraining], Tracker], training: TrackedTraining) -> None:
        """Open a tracker. It is called from now on."""

        def add() -> None:
            self._trackers[name] = opener(training)

        self._warning_of(name, add)

    def step(self, report: StepReport) -> None:
        """Pass a trained step to all trackers."""
        for name, tracker in self._trackers.items():
            self._warning_of(name, partial(tracker.step, report))

    def event(self, event: str, **values: Any) -> None:
        """Pass an event between two steps to all trackers."""
        for name, tracker in self._trackers.items():
            self._warning_of(name, partial(tracker.event, event, **values))

    def close(self) -> None:
        """Tell all trackers to close: the training has ended."""
        for name, tracker in self._trackers.items():
            self._warning_of(name, tracker.close)

    def _warning_of(self, name: str, tell: Callable[[], None]) -> None:
        """Call `tell`. If it raises, print a warning, but only once per tracker."""
        try:
            tell()
        except Exception as error:
            if name not in self._failed:
                self._failed.add(name)
                say(f"{NOTE}the tracker {name} failed ({first_line(error)}); the training is not affected")
