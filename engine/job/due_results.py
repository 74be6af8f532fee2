"""Images and LoRAs of steps before a task's end, made while it trains."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.evaluation.validation_images import draw, planned_images
from engine.job import publish
from engine.job.session import ProgressSaver, Session, Training
from engine.results import checkpoint
from engine.results.output import step_results


class InterimResults:
    """Makes what is due at the trainer's step, and leaves the training as it was."""

    def __init__(self, session: Session, training: Training, saver: ProgressSaver, tell: Callable[[str], None]) -> None:
        """`tell` takes the name of an event that somebody may be waiting for."""
        self._session = session
        self._training = training
        self._saver = saver
        self._tell = tell
        job = session.job
        self._image_steps = step_results.image_steps(job.task, job.step_range)
        self._checkpoint_steps = step_results.checkpoint_steps(job.task, job.step_range)

    def make(self) -> None:
        """Make what is due and not kept yet. In all processes, after each step, and before the first one.

        A progress that was saved before these were made is of their own step at the latest, so that whoever goes on
        from it makes them then.

        Raises:
            Interrupted: by a signal while images are drawn; the progress is saved.
        """
        step, done = self._training.trainer.step, self._training.kept.hashes
        if step in self._checkpoint_steps and self._main_file(step) not in done:
            self._keep(self._weights)
            self._training.kept.limit_weights(self._session.job.task.checkpoint_limit)
            self._tell("lora")
        if step in self._image_steps and step_results.image_name(step, "0.png") not in done:
            self._keep(self._images)
            self._saver.save()  # drawing them again would take longer
            self._tell("images")

    def _keep(self, make: Callable[[], dict[str, bytes]]) -> None:
        """Let the first process make files and write them; the others wait for it."""
        self._saver.require_sound()
        store = self._training.kept
        store.hashes |= self._session.processes.from_first(lambda: store.write(make()))

    def _main_file(self, step: int) -> str:
        method = self._session.job.method
        return step_results.WEIGHTS + checkpoint.step_file(step, method.files[method.main_file])

    def _weights(self) -> dict[str, bytes]:
        with self._session.outcome.clock.phase("save"):
            step = self._training.trainer.step
            job = self._session.job
            files = job.method.step_files(step, publish.exported(job, self._training))
            return {step_results.WEIGHTS + name: data for name, data in files.items()}

    def _images(self) -> dict[str, bytes]:
        session, family, step = self._session, self._training.family, self._training.trainer.step
        with session.outcome.clock.phase("validate"):
            images = planned_images(session.job)
            drawn = draw(
                session,
                family,
                f"validation at step {step}",
                images,
                check_stop=lambda: session.stop.check(self._saver.save),
            )
            # The denoiser gets the device's memory for itself again.
            family.move_encoders(torch.device("cpu"))
        return {step_results.image_name(step, file): data for file, data in drawn.items()}
