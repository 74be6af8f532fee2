"""Make the images and weights of steps before a task's last one, while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.core.files.atomic_files import Pieces
from engine.evaluation.validation_images import draw, planned_images
from engine.job.context import RunContext
from engine.job.progress_saver import ProgressSaver
from engine.job.results import publish
from engine.job.results.watch import Watch
from engine.job.start import Training
from engine.results import checkpoint
from engine.results.output import step_results
from engine.results.trackers.tracker import Trackers
from engine.training.encoding.encoder_placement import EncoderPlacement


class DueResults:
    """Makes what is due at the trainer's step, without any effect on the training."""

    def __init__(
        self,
        context: RunContext,
        training: Training,
        saver: ProgressSaver,
        trackers: Trackers,
        watch: Watch,
        *,
        placement: EncoderPlacement,
    ) -> None:
        self._context = context
        self._training = training
        self._saver = saver
        self._trackers = trackers
        self._watch = watch
        self._placement = placement
        self.end_at(context.job.step_range.stop_step)

    def end_at(self, step: int) -> None:
        """Take note that the task ends after this step: what it would make there is its result."""
        task, step_range = self._context.job.task, self._context.job.step_range.ended_at(step)
        self._image_steps = step_results.image_steps(task, step_range)
        self._checkpoint_steps = step_results.checkpoint_steps(task, step_range)

    def make(self) -> None:
        """Make what is due and not made yet. All processes call it, after each step and before the first one.

        Progress that was saved before these were made is of this step or an earlier one, so a job that continues from
        it makes them then.

        Raises:
            Interrupted: by a signal while images are drawn; the progress is saved.
        """
        step, done = self._training.trainer.step, self._training.step_results.hashes
        if step in self._checkpoint_steps and not step_results.has_weights(done, step):
            self._add(self._weights)
            self._training.step_results.limit_weights(self._context.job.task.checkpoint_limit)
            self._trackers.event(self._context.job.method.words.event)
            self._watch.results_changed()
        has_images = any(name.startswith(step_results.image_name(step, "")) for name in done)
        if step in self._image_steps and not has_images:
            if self._saver.saves_together:
                self._saver.save()  # a signal while the first process draws could not be followed by it
            self._add(self._images)
            self._saver.save()  # drawing them again would take longer
            self._trackers.event("images")
            self._watch.results_changed(has_pictures=True)

    def _add(self, make: Callable[[], Mapping[str, bytes | Pieces]]) -> None:
        """Let the first process make files with the weights that are published, and write them; the others wait."""
        self._saver.require_sound()
        store = self._training.step_results
        with self._training.trainer.averaged():
            store.hashes |= self._context.processes.broadcast(lambda: store.write(make()))

    def _weights(self) -> dict[str, bytes | Pieces]:
        with self._context.outcome.clock.phase("save"):
            step = self._training.trainer.step
            job = self._context.job
            files = publish.exported(job, self._training)
            return {
                step_results.WEIGHTS + checkpoint.step_file(step, job.method.step_ending(name) or ""): data
                for name, data in files.items()
            }

    def _check_stop(self) -> None:
        self._watch.renew_if_due()
        self._context.stop.check(self._saver.save_alone)

    def _images(self) -> dict[str, bytes]:
        context, family, step = self._context, self._training.family, self._training.trainer.step
        task = context.job.task
        with context.outcome.clock.phase("validate"):
            self._placement.bring()
            drawn = draw(
                planned_images(task, context.job.dataset, context.job.base.family),
                family,
                what=f"validation at step {step}",
                resolution=task.train_args.resolution,
                device=context.device,
                check_stop=self._check_stop,
            ).files
            self._placement.release()
        return {step_results.image_name(step, file): data for file, data in drawn.items()}
