"""The request to end a task early with what is there: SIGUSR1, or a file `FINISH_NOW` in the output folder."""

from __future__ import annotations

import time
from typing import Final

from engine.core.console import say
from engine.job.context import RunContext
from engine.job.start import Training
from engine.results.output import step_results

_LOOK_SECONDS: Final = 0.25
"""The time between two looks at the folder, which may be on a slow network disk."""


class FinishNow:
    """Looks for a request to finish. Any process may receive the signal; only the first one looks for the file."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._step: int | None = None
        self._next_look = 0.0

    def is_due(self, step: int) -> bool:
        """Return whether the task is to end after this step, which it has just trained."""
        if self._context.processes.is_first and time.monotonic() >= self._next_look:
            self._step = self._context.output.finish_step()
            self._next_look = time.monotonic() + _LOOK_SECONDS
        return self._context.stop.is_finish_requested or (self._step is not None and step >= self._step)

    def has_ended(self, training: Training) -> bool:
        """Return whether an earlier start of the job has ended the task at the restored step."""
        step = training.trainer.step
        if self._context.output.finish_step() != step or step == self._context.job.step_range.start_step:
            return False
        return not any(step_results.is_of_step(name, step) for name in training.step_results.hashes)

    def record(self, step: int) -> None:
        """Note that the task ends after this step, also for the next start if this one is killed before it is done."""
        say(f"told to finish: this task ends after step {step}")
        self._context.output.record_finish(step)
