"""Predict the disk space that a job takes in its output folder, and check that it is free. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.core.errors import OutputError
from engine.evaluation.drawings import extents
from engine.job import memory
from engine.job.job import Job
from engine.job.memory import gib
from engine.results.checkpoint import Checkpoint, step_of
from engine.results.output import step_results
from engine.task.plan.extent import Extent

_VALUE_BYTES: Final = 4
"""Bytes of each trained value in the training state: float32."""
_PIXEL_BYTES: Final = 2
"""Typical bytes per pixel of an image as PNG; the maximum is 3."""
_PIXELS_OF_A_BYTE: Final = 4
"""Pixels of a clip for each byte of its file."""
_STEP_BYTES: Final = 90
"""Bytes per line of the history."""
_LARGE: Final = 1 << 30
"""Bytes of one step's weights from which a note says what is kept."""
_OTHER_BYTES: Final = 1 << 20
"""Bytes of the manifest and the logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The bytes that the output folder takes at its peak.

    The files of the state, and the weights of earlier steps, are written once: the result has links to those of the
    saved progress. While the progress is saved, the former one is still there.
    """

    result: int
    """Bytes of `checkpoint/`, `validation/` and the report."""
    progress: int
    """Bytes more, for the progress that is saved a second time and images of earlier steps."""
    state: int
    """Bytes of the training state in the result."""
    weights: int
    """Bytes of the weights that are published after one step."""
    kept: int
    """Number of earlier steps whose weights are kept in the end."""

    @property
    def total(self) -> int:
        return self.result + self.progress


def predict(job: Job) -> Room | None:
    """Predict what a job writes; None where the base model's configurations do not say how large it is."""
    prediction = memory.predict(job.base, job.task, recompute=True, device="cpu")
    if prediction is None:
        return None
    task, step_range = job.task, job.step_range
    state = prediction.trained * job.method.copies(task) * _VALUE_BYTES + prediction.optimizer + prediction.average
    state += _STEP_BYTES * step_range.stop_step  # the history is the whole chain's
    exported = prediction.trained * job.method.published_bytes(task)
    pictures = sum(map(_picture_bytes, extents(task, job.base.family)))
    between = pictures * len(step_results.image_steps(task, step_range))
    own = min(len(step_results.checkpoint_steps(task, step_range)), task.checkpoint_limit)
    earlier = len(set(map(step_of, job.parent.steps))) if isinstance(job.parent, Checkpoint) else 0
    of_steps = min(own + earlier, task.checkpoint_limit) if task.checkpoint_every_n_steps else 0
    report = 3 * pictures  # with and without the trained weights, in Base64
    return Room(
        result=exported * (1 + of_steps) + state + 2 * pictures + between + report + _OTHER_BYTES,
        progress=state + between,
        state=state,
        weights=exported,
        kept=of_steps,
    )


def _picture_bytes(extent: Extent) -> int:
    """Return the typical bytes of a validation image or clip."""
    pixels = extent.width * extent.height * extent.frames
    return pixels * _PIXEL_BYTES if extent.frames == 1 else pixels // _PIXELS_OF_A_BYTE


def describe(job: Job) -> list[str]:
    """Return lines for a person with the prediction; none where nothing can be predicted."""
    found = predict(job)
    if found is None:
        return []
    lines = [
        f"disk           {gib(found.result)} for the result (training state {gib(found.state)}, weights "
        f"{gib(found.weights)}), {gib(found.progress)} more while it trains"
    ]
    if found.kept and found.weights >= _LARGE:
        lines.append(
            f"note: the weights of each step that is kept take {gib(found.weights)}, all of them in the end "
            f"{gib(found.kept * found.weights)}; checkpoint_limit says how many are kept"
        )
    return lines


def require(job: Job, root: Path) -> None:
    """Check that the result fits on the disk of the output folder.

    Raises:
        OutputError: it would not; the message says how much it takes and how much is free.
    """
    needed, free = predict(job), free_bytes(root)
    if needed is None or free is None:
        return
    there = _bytes_below(root / ".job")  # an earlier start's saved progress, which this job's replaces
    if needed.total > free + there:
        raise OutputError(
            f"not enough disk space in {root}: result and saved progress take about {gib(needed.total)}, and "
            f"{gib(free + there)} are free; free some space, or choose another output folder"
        )


def free_bytes(folder: Path) -> int | None:
    """Return the bytes that this user can still write to the disk of `folder`, which may not exist; None is unknown."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    found = os.statvfs(place)
    blocks = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    return blocks * found.f_frsize if found.f_blocks else None  # some network storage does not report it


def _bytes_below(folder: Path) -> int:
    found = [path.stat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum({(status.st_dev, status.st_ino): status.st_size for status in found}.values())  # one may have two names
