"""Save a training's progress when it is due, and coordinate the processes after each step."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

from engine.core.errors import DeviceError
from engine.job.context import RunContext
from engine.job.results.finish_now import FinishNow
from engine.job.start import Training
from engine.results.history import DIGEST_STEPS, StepReport
from engine.results.output.saved_progress import SavedProgress
from engine.results.output.step_results import SavedState
from engine.results.state import read_along, state_files, weights_digest

_MAX_SAVING_SHARE: Final = 0.05
"""Upper bound on the fraction of training time that is spent on saving, however slow the disk is."""


class ProgressSaver:
    """Saves the exact progress at intervals, and on request. Only the first process writes."""

    def __init__(self, context: RunContext, training: Training) -> None:
        self._context = context
        self._finish_now = FinishNow(context)
        self._training = training
        self._saved_at = time.monotonic()
        self._cost = 0.0

    def save(self) -> None:
        """Save now. The trainer must be between two steps, and all processes call it if `saves_together`.

        Raises:
            NonFiniteError: the last update has overflowed float32; the progress saved before is kept.
            OutputError: the progress cannot be written.
        """
        start = time.monotonic()
        self._require_finite()
        self._save_state()
        if self._context.processes.is_first:
            training = self._training
            assert training.step_results.state is not None, "it is saved just now"
            SavedProgress(
                state=training.step_results.state,
                history=training.history,
                held_out_losses=training.held_out_losses,
                step_hashes=training.step_results.hashes,
                origins=training.origins,
                so_far=self._context.outcome.so_far(),
            ).write(self._context.output, self._context.job.record)
            training.step_results.delete_unnamed()
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - start

    @property
    def saves_together(self) -> bool:
        """True if the first process cannot save alone, since the others have parts of the state."""
        return self._training.trainable.is_whole_model and self._context.processes.world_size > 1

    def save_alone(self) -> None:
        """Save now, where the other processes may be at another point; keep the last saved progress if that cannot be.

        Raises:
            NonFiniteError, OutputError: as `save` does.
        """
        if not self.saves_together:
            self.save()

    def _save_state(self) -> None:
        """Write the files of the state, unless they are there already: a task may save twice after a step."""
        trainer, results = self._training.trainer, self._training.step_results
        if results.state is not None and results.state.is_of(trainer.step):
            return
        state = trainer.state()
        files, scalars = state_files(state)
        hashes: dict[str, str] = {}
        if self._context.processes.is_first:
            hashes = results.write(files)
        elif self.saves_together:
            read_along(state)
        results.state = SavedState(scalars, hashes)

    def finish(self) -> None:
        """Save the progress after the training's last step.

        Raises:
            DeviceError: the processes' weights differ.
        """
        self.require_sound()
        self.save()

    def require_sound(self) -> None:
        """Check the weights in all processes before they are used for a result.

        Raises:
            NonFiniteError: the last update has overflowed float32.
            DeviceError: the processes' weights differ.
        """
        self._require_finite()
        if self._context.processes.world_size > 1:
            self._require_same(self._digest())

    def _require_finite(self) -> None:
        self._training.trainable.require_finite(self._training.trainer.step)

    def _digest(self) -> str:
        return weights_digest(self._training.trainable.state())

    def _require_same(self, digest: str) -> None:
        """Check that the digest of the weights is the same in all processes.

        Raises:
            DeviceError: it is not, so the arithmetic or memory of one machine is wrong.
        """
        step = self._training.trainer.step
        self._context.processes.require_same(f"the digest of the weights after step {step}", digest, DeviceError)

    def _is_due(self) -> bool:
        """Return whether the last save is old enough, and was cheap enough, for the next one."""
        due = max(self._context.settings.save_seconds, self._cost / _MAX_SAVING_SHARE)
        return self._context.processes.is_first and time.monotonic() - self._saved_at >= due

    def after_step(self, report: StepReport) -> bool:
        """Add the step to the history, then save or stop if the processes agree to. All processes call it.

        Returns:
            True if the task is to end after this step, with a result.

        Raises:
            Interrupted: the job is to stop; its progress is saved.
            DeviceError: the processes' weights differ.
        """
        stop, processes = self._context.stop, self._context.processes
        digest = self._digest() if report.step % DIGEST_STEPS == 0 else None
        # Before the first exchange: where another process has ended, the progress is saved as it is then.
        self._training.history.append(replace(report, weights=digest))
        signum, is_due, ends = processes.agree(
            signum=stop.signum, save=self._is_due(), finish=self._finish_now.is_due(report.step)
        )
        if processes.world_size > 1 and (digest or is_due or signum):
            self._require_same(digest or self._digest())
        if is_due and not signum:
            self.save()
        stop.check(self.save if signum else self.save_alone, signum=signum)  # without a signal a process has ended
        if ends and processes.is_first:
            self._finish_now.record(report.step)
        return ends
