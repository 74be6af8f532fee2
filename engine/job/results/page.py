"""Fill in `report.html`: of a result, or of a task as it is now."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from engine.core.canonical_json import canonical_json
from engine.core.console import notes
from engine.core.files.atomic_files import Contents, Stored
from engine.core.redact import public
from engine.evaluation.drawings import VIDEO_SUFFIX
from engine.evaluation.validation_images import Pictures
from engine.job.context import RunContext
from engine.job.job import Job
from engine.job.results import report_parts
from engine.job.results.training_images import training_images
from engine.job.start import Training
from engine.results import checkpoint, report
from engine.results.output import step_results
from engine.results.report.earlier import Earlier
from engine.results.report.facts import Published
from engine.results.report.pictures import PNG_START, STRIP_LENGTH, STRIP_PIXELS, Picture, TrainingImage
from engine.results.report.unfinished import Unfinished
from engine.task.identity import canonical

_KEY_LENGTH: Final = 16
_MAX_VIDEO_BYTES: Final = 48 << 20
"""The bytes of clips on the page, which takes a third more; of further clips it shows stills."""
_STILL_PIXELS: Final = 512


class Page:
    """The report of a task. What does not change while the task runs is made once, when it is first needed."""

    def __init__(self, context: RunContext, training: Training) -> None:
        self._context = context
        self._training = training
        self._small: dict[tuple[int, str], bytes] = {}
        self._stills: dict[str, bytes] = {}

    def of(
        self,
        pictures: Pictures,
        lineage: list[dict[str, Any]],
        *,
        digest: str | None = None,
        unfinished: Unfinished | None = None,
        files: Mapping[str, Contents] | None = None,
        usage: str = "",
    ) -> report.Report:
        """Return the report: of a result, or `unfinished` as the task is now, with the images that are there.

        Args:
            pictures: the validation images.
            lineage: the chain's tasks, this one last.
            digest: the digest of the result.
            unfinished: the state of a task without a result.
            files: the files of the result's `checkpoint/`.
            usage: the model card's section on how to use them.
        """
        job, outcome, whole = self._context.job, self._context.outcome, self._context.outcome.so_far()
        return report.Report(
            words=job.method.words,
            title=title_of(job),
            task=canonical(job.task),
            history=self._training.history,
            pictures=self._pictures(pictures),
            start_step=job.step_range.start_step,
            global_step=outcome.global_step,
            max_steps=job.step_range.max_steps,
            visits_per_step=job.step_range.visits_per_step,
            finished=job.step_range.finishes and unfinished is None,
            unfinished=unfinished,
            seconds=whole.seconds,
            peak_memory_bytes=whole.peak_memory_bytes,
            skipped=whole.skipped,
            warnings=notes(),
            lineage=lineage,
            checkpoint_digest=digest,
            device=lineage[-1]["device"],
            versions=lineage[-1]["versions"],
            held_out_losses=self._training.held_out_losses,
            earlier=self._earlier,
            training_images=self._training_images,
            noun=job.medium.names.noun,
            num_images=job.dataset.num_images,
            settings=report_parts.settings_of(job),
            published=_published(job, files or {}),
            usage=usage,
        )

    @cached_property
    def _earlier(self) -> Earlier:
        return report_parts.earlier_tasks(self._context.job)

    @cached_property
    def _training_images(self) -> list[TrainingImage]:
        return training_images(self._context.job)

    def _pictures(self, pictures: Pictures) -> list[Picture]:
        room, found = _MAX_VIDEO_BYTES, []
        for image, baseline in zip(pictures.images, pictures.baseline, strict=True):
            if image.file not in pictures.drawn:
                continue
            with_it, without = pictures.drawn[image.file], pictures.without.get(baseline["file"])
            picture = Picture(
                prompt=image.prompt,
                seed=image.seed,
                png=self._still(image.file, with_it),
                without_png=None if without is None else self._still(image.file, without) or None,
                between=self._between(pictures, image.file, _key(image.described())),
                key=_key(image.described()),
                is_clip=image.is_clip,
            )
            size = len(with_it) + len(without or b"")
            if image.is_clip and size <= room:
                room -= size
                picture = replace(picture, clip=with_it, without_clip=without)
            found.append(picture)
        return found

    def _still(self, file: str, data: bytes) -> bytes:
        """Return an image as it is, and of a clip a still of at most `_STILL_PIXELS` in width and height."""
        if not file.endswith(VIDEO_SUFFIX):
            return data
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._stills:
            self._stills[digest] = report_parts.smaller(report_parts.still_of(file, data), _STILL_PIXELS)
        return self._stills[digest]

    def _between(self, pictures: Pictures, file: str, key: str) -> list[tuple[int, bytes]]:
        """Return as many images of the chain's earlier steps as the report has room for, small, in their order."""
        found = dict(self._earlier.pictures.get(key, ()))
        names = {
            step: step_results.image_name(step, file).removeprefix(step_results.IMAGES)
            for step in step_results.image_steps(self._context.job.task, self._context.job.step_range)
        }
        found |= {step: pictures.between[name] for step, name in names.items() if name in pictures.between}
        steps = sorted(found)
        count = min(len(steps), STRIP_LENGTH)
        chosen = [steps[i * (len(steps) - 1) // max(count - 1, 1)] for i in range(count)]
        small = [(step, self._smaller(step, file, found[step])) for step in chosen]
        return [(step, png) for step, png in small if png]

    def _smaller(self, step: int, file: str, data: bytes) -> bytes:
        if (step, file) not in self._small:
            still = data if data.startswith(PNG_START) else report_parts.still_of(file, data)
            self._small[step, file] = report_parts.smaller(still, STRIP_PIXELS)
        return self._small[step, file]


def title_of(job: Job) -> str:
    """Return the names of the base model and the dataset, in one line."""
    source = job.task.dataset.name or str(job.task.dataset.url)
    return f"{public(_last_name(job.task.model.name))} on {public(_last_name(source))}"


def _last_name(source: str) -> str:
    """Return a local folder's name without its path; a Hub ID or a URL unchanged."""
    return Path(source).name if Path(source).is_absolute() else source


def _key(described: Mapping[str, Any]) -> str:
    """Return a digest of how an image is drawn, whatever its file's name is."""
    drawn = {name: value for name, value in described.items() if name != "file"}
    return hashlib.sha256(canonical_json(drawn)).hexdigest()[:_KEY_LENGTH]


def _published(job: Job, files: Mapping[str, Contents]) -> list[Published]:
    """Return name and size of a result's files, the weights first."""
    weights = [name for name in files if job.method.step_ending(name) is not None]
    earlier = [name for name in files if checkpoint.step_of(name) is not None]
    rest = [name for name in files if name not in {*weights, *earlier}]
    return [
        *(Published(name, _size(files[name]), "weights") for name in weights),
        *(Published(name, _size(files[name]), "earlier") for name in earlier),
        *(Published(name, _size(files[name]), "state") for name in rest),
    ]


def _size(content: Contents) -> int:
    return content.path.stat().st_size if isinstance(content, Stored) else len(content)
