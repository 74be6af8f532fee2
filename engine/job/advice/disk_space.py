"""Predict the disk space that a job takes in its output folder, and check that it is free. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.core.errors import OutputError
from engine.job import memory
from engine.job.job import Job
from engine.job.memory import gib
from engine.results.checkpoint import Checkpoint
from engine.results.output import step_results
from engine.training.optimizers.registry import OPTIMIZERS

_VALUE_BYTES: Final = 4
"""Bytes of each trained value in a published file and in the training state: float32."""
_PIXEL_BYTES: Final = 2
"""Typical bytes per pixel of an image as PNG; the maximum is 3."""
_STEP_BYTES: Final = 90
"""Bytes per line of the history."""
_OTHER_BYTES: Final = 1 << 20
"""Bytes of the manifest and the logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The bytes that the output folder takes at its peak, when the result is built beside the saved progress."""

    result: int
    """Bytes of `checkpoint/`, `validation/` and the report."""
    progress: int
    """Bytes of the saved progress, with the results of earlier steps."""

    @property
    def total(self) -> int:
        return self.result + self.progress


def predict(job: Job) -> Room | None:
    """Predict what a job writes; None where the base model's configurations do not say how large it is."""
    prediction = memory.predict(job.base, job.task, recompute=True, device="cpu")
    if prediction is None:
        return None
    task, step_range = job.task, job.step_range
    weights = prediction.trained * _VALUE_BYTES
    copies = job.method.copies(task) + len(OPTIMIZERS[task.train_args.optimizer].slots)
    state = weights * copies + _STEP_BYTES * step_range.stop_step  # the history is the whole chain's
    exported = weights * 2
    prompts = task.validation.given_prompts
    drawn = task.validation.num_images if prompts is None else len(prompts)
    pictures = drawn * _PIXEL_BYTES * task.train_args.resolution**2
    between = pictures * len(step_results.image_steps(task, step_range))
    own = min(len(step_results.checkpoint_steps(task, step_range)), task.checkpoint_limit)
    earlier = len(job.parent.steps) // 2 if isinstance(job.parent, Checkpoint) else 0
    of_steps = min(own + earlier, task.checkpoint_limit)
    report = 3 * pictures  # with and without the trained weights, in Base64
    return Room(
        result=exported * (1 + of_steps) + state + 2 * pictures + between + report + _OTHER_BYTES,
        progress=state + exported * own + between,
    )


def describe(job: Job) -> list[str]:
    """Return a line for a person with the prediction; none where nothing can be predicted."""
    found = predict(job)
    if found is None:
        return []
    return [f"disk           {gib(found.result)} for the result, {gib(found.progress)} more while it trains"]


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
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)
