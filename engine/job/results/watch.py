"""Show a training while it runs: `report.html`, `preview/`, and the tracking services that the operator chose.

Only the job's first process shows anything. Whatever goes wrong here is a warning: the training and its bytes stay.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from engine.core.console import NOTE, say, timestamp
from engine.core.errors import Interrupted, JobError, first_line
from engine.evaluation.validation_images import Pictures, carried, planned_images, without_training
from engine.job.context import RunContext
from engine.job.results.lineage import lineage_of
from engine.job.results.page import Page, title_of
from engine.job.results.report_parts import still_of
from engine.job.start import Training
from engine.results import report
from engine.results.checkpoint import Checkpoint
from engine.results.history import StepReport
from engine.results.output import preview, step_results
from engine.results.output.folder import REPORT
from engine.results.report.text import without_secrets
from engine.results.report.unfinished import Unfinished
from engine.results.trackers.service import Followed
from engine.results.trackers.services import Services
from engine.task.identity import canonical

_SECONDS: Final = 60.0
"""The longest time between two reports."""
_SHARE: Final = 0.02
"""The largest fraction of the time that goes into reports."""


class Watch:
    """Shows a training while it runs. Use `opened`."""

    def __init__(self, context: RunContext, training: Training, services: Services) -> None:
        self.services = services
        self.page = Page(context, training)
        """The task's report."""
        self._context = context
        self._training = training
        task = context.job.task
        self._images = planned_images(task, context.job.dataset, context.job.base.family)
        self._is_on = context.processes.is_first
        self._has_new_picture = False
        self._has_failed = False
        self._made_at = -_SECONDS
        self._cost = 0.0

    @classmethod
    @contextmanager
    def opened(cls, context: RunContext, training: Training) -> Iterator[Watch]:
        """Show the training while the block runs, and how it ended if it ends without a result."""
        services = Services(context.settings.trackers if context.processes.is_first else ())
        watch = cls(context, training, services)
        context.outcome.clock.watchers.append(services.phase)
        services.begin(lambda: _followed(context, training))
        watch.results_changed()
        try:
            yield watch
        except BaseException as error:
            watch._ended_by(error)
            raise
        finally:
            services.close()

    def step(self, report: StepReport) -> None:
        """Take note of a trained step."""
        self.services.step(report)

    def renew_if_due(self) -> None:
        """Write `report.html` if a minute has gone by or a picture is new, and the last one was cheap enough."""
        age = time.monotonic() - self._made_at
        if self._is_on and age >= (0.0 if self._has_new_picture else _SECONDS) and age >= self._cost / _SHARE:
            self._write(Unfinished("running", timestamp()))

    def results_changed(self, *, has_pictures: bool = False) -> None:
        """Renew the preview after results of a step were made; `has_pictures`: images of the current step."""
        if not self._is_on:
            return
        results, step = self._training.step_results, self._training.trainer.step
        pictures = results.files(step_results.IMAGES)
        with self._harmless():
            preview.renew(self._context.output.root, pictures, results.files(step_results.WEIGHTS))
        if has_pictures:
            self._has_new_picture = True
            with self._harmless():
                files = (image.file for image in self._images)
                self._send(step, {file: b"".join(pictures[_name(step, file)].chunks()) for file in files})
            self.renew_if_due()

    def drawn(self, pictures: Pictures) -> None:
        """Send the images after the task's last step to the services, of clips stills."""
        self._send(self._training.trainer.step, pictures.drawn)

    def published(self) -> None:
        """End: the job's result is in place, with its report."""
        self._is_on = False
        self.services.close()

    def _send(self, step: int, drawn: dict[str, bytes]) -> None:
        names = {image.file: f"{Path(image.file).stem}.png" for image in self._images}
        stills = {names[file]: still_of(file, data) for file, data in drawn.items()} if self.services.are_open else {}
        shown = {name: png for name, png in stills.items() if png}
        self.services.pictures(step, shown, {names[image.file]: image.prompt for image in self._images})

    def _ended_by(self, error: BaseException) -> None:
        if not self._is_on:
            return
        if isinstance(error, Interrupted):
            command = shlex.join(["entrypoint.py", *sys.argv[1:]])
            self._write(Unfinished("interrupted", timestamp(), command))
        else:
            self._write(Unfinished("failed", timestamp(), first_line(error)))

    def _write(self, unfinished: Unfinished) -> None:
        start = time.monotonic()
        with self._harmless():
            lineage = lineage_of(self._context, self._training)
            page = self.page.of(self._pictures(), lineage, unfinished=unfinished)
            self._context.output.write(REPORT, report.render(page).encode())
        self._has_new_picture = False
        self._made_at = time.monotonic()
        self._cost = self._made_at - start

    def _pictures(self) -> Pictures:
        """Return the images that are there: the latest ones, and those of earlier steps."""
        job = self._context.job
        between = {
            name: b"".join(file.chunks())
            for name, file in self._training.step_results.files(step_results.IMAGES).items()
        }
        latest = max(between, default="").partition("/")[0]
        baseline = without_training(self._images)
        chain = job.parent if isinstance(job.parent, Checkpoint) else None
        return Pictures(
            images=self._images,
            drawn={name.partition("/")[2]: png for name, png in between.items() if name.startswith(f"{latest}/")},
            baseline=[image.described() for image in baseline],
            without=carried(chain, baseline) or {},
            between={name: png for name, png in between.items() if not name.startswith(f"{latest}/")},
        )

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Turn an error in the block into one warning."""
        try:
            yield
        except (JobError, OSError) as error:
            if not self._has_failed:
                self._has_failed = True
                say(f"{NOTE}the report or the preview of the running task cannot be written: {first_line(error)}")


def _name(step: int, file: str) -> str:
    """Return the name under which an earlier step's image is published in `validation/`."""
    return step_results.image_name(step, file).removeprefix(step_results.IMAGES)


def _followed(context: RunContext, training: Training) -> Followed:
    """Return what the services are told of the training at its start."""
    job = context.job
    chain = job.parent.lineage if isinstance(job.parent, Checkpoint) else []
    first = chain[0].get("task_digest") if chain else None
    return Followed(
        run=str(first or job.task_digest)[:16],
        name=title_of(job),
        folder=str(context.output.root),
        step=training.trainer.step,
        start_step=job.step_range.start_step,
        stop_step=job.step_range.stop_step,
        visits_per_step=job.step_range.visits_per_step,
        task=without_secrets(canonical(job.task)),
    )
