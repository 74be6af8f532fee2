"""Show the training on the console: a progress bar on a terminal, a line at intervals elsewhere."""

from __future__ import annotations

import math
from typing import Any

from engine.core.console import Meter
from engine.results.history import StepReport
from engine.results.trackers.speed import Speed
from engine.results.trackers.tracker import TrackedTraining


class ConsoleTracker:
    """Shows the training's progress, mean loss since the last line, learning rate and speed."""

    def __init__(self, training: TrackedTraining) -> None:
        step_range = training.step_range
        self._visits_per_step = step_range.visits_per_step
        self._noun = training.noun
        self._meter = Meter("training", "steps", step_range.stop_step, start=training.step, begins=False)
        self._speed = Speed()
        self._losses: list[float] = []
        """The losses since the last line."""
        training.clock.watchers.append(self._phase)

    def _phase(self, name: str) -> None:
        if name == "train":  # encoding the first images has a bar of its own, and does not count as training time
            self._meter.begin()
            self._speed.begin()

    def step(self, report: StepReport) -> None:
        visits_per_second = self._speed.step() * self._visits_per_step
        self._losses.append(report.loss)
        mean = math.fsum(self._losses) / len(self._losses)
        note = f"loss {mean:.4f}, lr {report.learning_rate:.2e}, {visits_per_second:.1f} {self._noun}s/s"
        if self._meter.update(report.step, note):
            self._losses.clear()

    def event(self, name: str, **values: Any) -> None:
        pass

    def close(self) -> None:
        self._meter.close()
