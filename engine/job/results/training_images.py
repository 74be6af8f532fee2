"""Choose some of the images that a job trains on, for its report, and make them small."""

from __future__ import annotations

import io
import time
from typing import Final

from PIL import Image as Pillow

from engine.core.errors import JobError, TemporaryError
from engine.data import caption_choice
from engine.data.media.geometry import Size, UnreadableImage, geometry
from engine.job.job import Job
from engine.results.report.pictures import TrainingImage
from engine.training.buckets import nearest

_COUNT: Final = 8
_SIDE: Final = 256
"""Maximum width and height, in pixels."""
_QUALITY: Final = 80
_SECONDS: Final = 3.0
"""The longest wait for a server: a report is made while the training waits, and when the job is to stop."""
_MAX_BYTES: Final = 2**24
"""The largest image file to read: the report is no reason to decode huge images. Of clips a few frames are decoded."""


def training_images(job: Job) -> list[TrainingImage]:
    """Return images from all over the dataset. Those that cannot be read, or not soon from a server, are left out."""
    rows = list(job.dataset.image_indices())
    count = min(len(rows), _COUNT)
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    end = time.monotonic() + _SECONDS

    def check_time() -> None:
        if time.monotonic() >= end:
            raise TemporaryError("the report does not wait for a server")

    try:
        job.dataset.read_ahead(chosen, check_stop=check_time)
        return [image for row in chosen if (image := _small(job, row)) is not None]
    finally:
        job.dataset.read_ahead([])  # without that end


def _small(job: Job, row: int) -> TrainingImage | None:
    dataset, medium = job.dataset, job.medium
    try:
        data = dataset.image_bytes(row)
        if len(data) > _MAX_BYTES and not medium.has_frames:
            return None
        extent = medium.measure(data)
        size = extent.size
        available = min(extent.frames, job.task.train_args.num_frames)
        frames = medium.choose_frames(available, 1, "uniform")  # the middle one
        view = geometry(size, target=_shape(job, size), center_crop=True, crop_words=(0, 0), flip=False, frames=frames)
        pixels = medium.render(data, view).reshape(*view.target[::-1], 3)
    except (UnreadableImage, JobError):  # the training itself says so
        return None
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, format="JPEG", quality=_QUALITY)
    captions = dataset.captions(row)
    shown = caption_choice.with_trigger(captions[0], job.task.dataset.trigger_word)
    return TrainingImage(jpeg=buffer.getvalue(), caption=shown, other_captions=len(captions) - 1)


def _shape(job: Job, size: Size) -> Size:
    """Return the shape in which an image of this size is trained on, as small as the report shows it."""
    if job.buckets is None:
        side = min(_SIDE, job.task.train_args.resolution)
        return (side, side)
    width, height = job.buckets.sizes[nearest(size, job.buckets.sizes)]
    scale = _SIDE / max(width, height)
    return (round(width * scale), round(height * scale))
